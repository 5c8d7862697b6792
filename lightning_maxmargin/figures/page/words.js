"use strict";
// Words that decide: each becomes a button that shows documents in which it does.

const SNIPPETS = 3, AROUND = 8;

function wordButtons(table, data) {
  const predicted = data.columns.findIndex((column) => column.name === "prediction");
  for (const cell of table.querySelectorAll("td[data-label]")) {
    const box = make("div", { class: "snippets", hidden: true });
    for (const name of cell.querySelectorAll("bdi[data-word]")) {
      const button = make("button", { type: "button", class: name.className, title: name.title, "aria-expanded": "false" }, [make("bdi", { text: name.textContent })]);
      button.style.setProperty("--w", name.style.getPropertyValue("--w"));
      button.addEventListener("click", () => toggle(cell, box, button, name.dataset.word));
      name.replaceWith(button);
    }
    cell.append(box);
  }

  function toggle(cell, box, button, word) {
    const opens = button.getAttribute("aria-expanded") === "false";
    cell.querySelectorAll("button[aria-expanded]").forEach((other) => other.setAttribute("aria-expanded", "false"));
    button.setAttribute("aria-expanded", String(opens));
    box.hidden = !opens;
    if (opens) box.replaceChildren(...snippets(word, cell.dataset.label));
  }

  function snippets(word, label) {
    const found = [];
    for (const [cells, reading] of data.rows) {
      if (predicted >= 0 && cells[predicted] !== label) continue;
      let at = -1;
      reading[0].forEach((text, i) => {
        if ((at < 0 || reading[1][i] > reading[1][at]) && plainWord(text) === word) at = i;
      });
      if (at >= 0) found.push({ cells, reading, at, weight: reading[1][at] });
    }
    if (!found.length) return [make("p", { class: "small", text: "None of the documents on this page that are predicted so holds it: the words are those of the documents the run was trained and validated on." })];
    found.sort((a, b) => b.weight - a.weight);
    return found.slice(0, SNIPPETS).map(({ cells, reading, at, weight }) => {
      const first = Math.max(0, at - AROUND), last = at + AROUND + 1;
      const cut = [reading[0].slice(first, last), reading[1].slice(first, last), reading[2].slice(first, last), reading[3], [], 0, 0];
      const note = make("span", { class: "small", text: `no. ${cells[0]}, weight ${(weight / 1000).toFixed(2)}: ` });
      return make("p", { dir: "auto" }, [note, first ? "… " : "", ...shadedWords(cut, "weight"), last < reading[0].length ? "…" : ""]);
    });
  }
}
