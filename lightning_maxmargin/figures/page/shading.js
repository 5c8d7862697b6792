"use strict";
// Words of a document, shaded. A reading is [words, weights in thousandths, evidence in hundredths of its largest, that
// largest, marked words, words before, words after]. Texts only ever become text nodes.

const SHADING = { faint: 0.02, most: 0.85 };

function make(name, options = {}, children = []) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (key === "text") element.textContent = value;
    else if (value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

function formatNumber(x) {
  if (x === null || x === undefined) return "—";
  const size = Math.abs(x);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return Number(x.toPrecision(3)).toExponential().replace("e+", "e");
  if (Number.isInteger(x)) return x.toLocaleString("en");
  // Three digits would hide how far it is from 1.
  if (Math.abs(1 - x) < 1e-3) return `1 ${x < 1 ? "−" : "+"} ${Number(Math.abs(1 - x).toPrecision(1)).toExponential()}`;
  return String(Number(x.toPrecision(3)));
}

// What each highlight measures: its size, from which the opacity comes.
const HIGHLIGHTS = {
  weight: (weight) => weight,
  evidence: (weight, evidence) => Math.abs(evidence),
  both: (weight, evidence) => weight * Math.abs(evidence),
};

function shadedWords(reading, highlight) {
  const [words, weights, evidence, largest, marked, before, after] = reading;
  const measure = HIGHLIGHTS[highlight] || HIGHLIGHTS.weight;
  const sizes = words.map((_, i) => measure(weights[i] || 0, evidence[i] || 0));
  const most = Math.max(...sizes, 0) || 1;
  const isMarked = new Set(marked);
  const parts = [];
  if (before) parts.push(make("bdi", { class: "more", text: `(${before.toLocaleString("en")} words before)` }), " ");
  words.forEach((word, i) => {
    const share = sizes[i] / most;
    if (share < SHADING.faint && !isMarked.has(i)) {
      parts.push(`${word} `);
      return;
    }
    const side = (evidence[i] || 0) >= 0 ? "for" : "against";
    const span = make("span", { class: `s ${share < SHADING.faint ? "" : side}`, text: word });
    const said = evidence.length ? `, evidence ${formatNumber(((evidence[i] || 0) / 100) * (largest || 0))}` : "";
    span.title = `weight ${((weights[i] || 0) / 1000).toFixed(3)}${said}`;
    span.style.setProperty("--w", (SHADING.most * share).toFixed(3));
    if (isMarked.has(i)) span.classList.add("marked");
    // Of a selector's tokens, without evidence, the selected one is outlined.
    if (!evidence.length && sizes[i] === most) span.classList.add("selected");
    parts.push(span, " ");
  });
  if (!words.length) parts.push(make("bdi", { class: "more", text: "(nothing to select)" }));
  if (after) parts.push(make("bdi", { class: "more", text: `(${after.toLocaleString("en")} words after)` }));
  return parts;
}

const EXCERPT = { before: 60, all: 260 };

// The heaviest word with what stands around it, in about as many characters as two lines hold.
function excerpt(reading, highlight) {
  const [words, weights, evidence, largest, marked] = reading;
  const at = weights.reduce((best, weight, i) => (weight > weights[best] ? i : best), 0);
  let first = at, last = at, room = EXCERPT.before;
  while (first > 0 && room >= words[first - 1].length) room -= words[--first].length + 1;
  for (room = EXCERPT.all; last < words.length && room > 0;) room -= words[last++].length + 1;
  const inside = marked.filter((i) => i >= first && i < last).map((i) => i - first);
  const part = [words.slice(first, last), weights.slice(first, last), evidence.slice(first, last), largest, inside, 0, 0];
  return [first ? "… " : "", ...shadedWords(part, highlight), last < words.length ? "…" : ""];
}

function plainWord(word) {
  const folded = word.toLowerCase();
  return folded.replace(/^[^\p{L}\p{N}_]+|[^\p{L}\p{N}_]+$/gu, "") || folded;
}
