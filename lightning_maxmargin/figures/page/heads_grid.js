"use strict";
// The grid of attention heads: the slider sets the evaluation, a cell opens what its head looks at.

function headGrid(section, data) {
  const slider = section.querySelector("#heads-step");
  const shown = section.querySelector("#heads-step-shown");
  const place = section.querySelector("#heads-open");
  const cells = [...section.querySelectorAll("button[data-head]")];
  const open = new Set(data.open);
  const MOST_WHOLE = 64; // tokens of a sample up to which all are shown
  const AROUND = 8; // else so many on both sides of what is looked at

  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const format = (x) => (x === 0 ? "0" : Math.abs(x) >= 0.005 ? x.toFixed(2) : x.toExponential(0));
  const nameOf = (sample, position) => {
    const known = data.tokens[sample] || [];
    return position < known.length ? known[position] : `token ${position}`;
  };

  const mean = (values) => (values.length ? values.reduce((a, b) => a + b, 0) / values.length : null);
  const mass = (step, head) => mean(data.seen[step][head].filter((look) => look.length).map((look) => look[0][1] / 100));

  function colour(step) {
    const byMass = section.querySelector("[name=heads-shown]:checked").value === "mass";
    for (const cell of cells) {
      const head = Number(cell.dataset.head);
      const x = byMass ? mass(step, head) : data.numbers[step][head];
      const part = x === null ? 0 : Math.min(Math.max(x, 0), 1);
      const said = x === null ? (byMass ? "no token" : "no certified SVM") : format(x);
      cell.textContent = x === null ? "–" : format(x);
      cell.style.setProperty("--w", byMass ? part : Math.cbrt(part));
      cell.classList.toggle("none", x === null);
      cell.setAttribute("aria-label", `${data.heads[head]}: ${said}`);
      cell.setAttribute("aria-pressed", open.has(head) ? "true" : "false");
    }
  }

  function token(sample, position, weights, selected) {
    const weight = weights.get(position) || 0;
    const made = element("bdi", position === selected ? "t selected" : "t", nameOf(sample, position));
    if (weight) {
      made.style.background = `rgb(var(--for) / ${0.85 * weight / 100})`;
      made.title = `position ${position}, ${weight} % of the attention`;
    }
    return made;
  }

  function sampleLine(sample, look) {
    const line = element("li", "tokens");
    if (!look.length) return line;
    const weights = new Map(look);
    const length = Math.max((data.tokens[sample] || []).length, ...look.map(([t]) => t + 1));
    const near = (t) => length <= MOST_WHOLE || look.some(([at]) => Math.abs(at - t) <= AROUND);
    let gap = false;
    for (let t = 0; t < length; t++) {
      if (!near(t)) {
        if (!gap) line.append(element("span", "more", "… "));
        gap = true;
        continue;
      }
      gap = false;
      line.append(token(sample, t, weights, look[0][0]), " ");
    }
    line.append(element("span", "small", `${look[0][1]} % on ${nameOf(sample, look[0][0])}`));
    return line;
  }

  function changes(head, sample) {
    const turns = [];
    data.steps.forEach((step, s) => {
      const look = data.seen[s][head][sample];
      if (look && look.length && (!turns.length || turns[turns.length - 1][1] !== look[0][0])) turns.push([step, look[0][0]]);
    });
    return turns.map(([step, t]) => `${nameOf(sample, t)} (from step ${step.toLocaleString("en")})`).slice(-6).join(" → ");
  }

  function looks(step) {
    place.replaceChildren();
    for (const head of [...open].sort((a, b) => a - b)) {
      const title = element("h3", "", data.heads[head]);
      title.dir = "auto";
      const list = element("ol", "looks");
      data.seen[step][head].forEach((look, sample) => {
        const line = sampleLine(sample, look);
        line.append(element("div", "small", changes(head, sample)));
        list.append(line);
      });
      place.append(title, list);
    }
    if (!open.size) place.append(element("p", "small", "No head is chosen."));
  }

  function draw() {
    const step = Number(slider.value);
    shown.textContent = data.steps[step].toLocaleString("en");
    slider.setAttribute("aria-valuetext", `step ${data.steps[step]}`);
    const of = data.measured[step];
    section.querySelector("#heads-measured").textContent = of === null || of === data.steps[step] ? "" :
      `Margins are of step ${of.toLocaleString("en")}, the nearest evaluation; tokens of this step.`;
    colour(step);
    looks(step);
  }

  for (const cell of cells) {
    cell.addEventListener("click", () => {
      const head = Number(cell.dataset.head);
      if (!open.delete(head)) open.add(head);
      draw();
    });
  }
  slider.addEventListener("input", draw);
  for (const choice of section.querySelectorAll("[name=heads-shown]")) choice.addEventListener("change", draw);
  draw();
}
