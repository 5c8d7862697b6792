"use strict";
// The table of documents: sorted by a column, filtered by text and by values, a screenful at a time.

const ROWS_AT_ONCE = 25;

function documentTable(root, data) {
  const { columns, rows, readings } = data;
  const state = { column: null, descending: false, shown: ROWS_AT_ONCE, highlight: "weight", open: new Set() };
  const ids = rows.map((_, i) => i);
  let texts = null; // lower case, made at the first search
  const search = make("input", { type: "search", id: "document-search", autocomplete: "off", placeholder: "word or phrase" });
  const menus = columns.map((column, k) => (column.filter ? valueMenu(column, k) : null));
  const status = make("span", { role: "status", class: "count" });
  const body = make("tbody", { role: "rowgroup" });
  const more = make("button", { type: "button", class: "more-rows" });
  const heads = columns.map(columnHead);

  function valueMenu(column, k) {
    const counts = new Map();
    for (const row of rows) if (row[0][k] !== null) counts.set(row[0][k], (counts.get(row[0][k]) || 0) + 1);
    const values = [...counts.keys()].sort((a, b) => String(a).localeCompare(String(b)));
    const select = make("select", {}, [make("option", { value: "", text: "all" })]);
    values.forEach((value, i) => {
      select.append(make("option", { value: String(i), text: `${value} (${counts.get(value).toLocaleString("en")})` }));
    });
    select.addEventListener("change", restart);
    return { k, select, values, label: make("label", {}, [`${column.name} `, select]) };
  }

  function columnHead(column, k) {
    const button = make("button", { type: "button", text: column.name, title: `${column.meaning}; press to sort` });
    const head = make("th", { scope: "col", role: "columnheader", class: column.kind, "aria-sort": "none" }, [button]);
    button.addEventListener("click", () => {
      state.descending = state.column === k && !state.descending;
      state.column = k;
      heads.forEach((other, i) => other.setAttribute("aria-sort", i !== k ? "none" : state.descending ? "descending" : "ascending"));
      restart();
    });
    return head;
  }

  function matching() {
    const wanted = search.value.trim().toLowerCase();
    if (wanted && !texts) texts = rows.map((row) => row.slice(1).map((reading) => reading[0].join(" ")).join(" ").toLowerCase());
    const chosen = menus.filter((menu) => menu && menu.select.value !== "");
    return ids.filter((i) => (!wanted || texts[i].includes(wanted))
      && chosen.every(({ k, select, values }) => rows[i][0][k] === values[Number(select.value)]));
  }

  function sorted(found) {
    const { column, descending } = state;
    if (column === null) return found;
    const sign = descending ? -1 : 1;
    return found.sort((a, b) => {
      const x = rows[a][0][column], y = rows[b][0][column];
      if (x === y) return a - b;
      if (x === null) return 1; // what is not known comes last, whichever way
      if (y === null) return -1;
      return (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y))) * sign;
    });
  }

  function restart() {
    state.shown = ROWS_AT_ONCE;
    draw();
  }

  function draw() {
    const found = sorted(matching());
    body.replaceChildren(...found.slice(0, state.shown).flatMap(rowOf));
    status.textContent = `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} documents`;
    const left = found.length - state.shown;
    more.hidden = left <= 0;
    more.textContent = `Show ${Math.min(ROWS_AT_ONCE, left)} more of ${left.toLocaleString("en")}`;
    more.onclick = () => {
      const next = body.querySelectorAll("tr.row").length;
      state.shown += ROWS_AT_ONCE;
      draw();
      body.querySelectorAll("tr.row button")[next]?.focus();
    };
  }

  function rowOf(i) {
    const [cells, ...parts] = rows[i];
    const isOpen = state.open.has(i);
    const button = make("button", { type: "button", class: "open", "aria-expanded": String(isOpen), "aria-label": `document ${cells[0]}, all words`, text: String(cells[0]) });
    const row = make("tr", { role: "row", class: "row" }, columns.map((column, k) => cellOf(column, cells[k], k ? null : button)));
    row.append(make("td", { role: "cell", class: "preview" }, [make("div", { dir: "auto" }, isOpen ? [] : excerpt(parts[0], state.highlight))]));
    row.classList.toggle("opened", isOpen);
    button.addEventListener("click", () => {
      if (!state.open.delete(i)) state.open.add(i);
      const old = row.nextElementSibling?.classList.contains("details") ? row.nextElementSibling : null;
      const fresh = rowOf(i);
      old?.remove();
      row.replaceWith(...fresh);
      fresh[0].querySelector("button").focus();
    });
    return isOpen ? [row, detailsOf(parts)] : [row];
  }

  function cellOf(column, value, button) {
    const cell = make("td", { role: "cell", class: column.kind, "data-name": column.name });
    if (column.kind === "outcome" && value !== null) cell.classList.add(String(value).replaceAll(" ", "-"));
    if (button) cell.append(button);
    else cell.append(column.kind === "number" ? formatNumber(value) : make("bdi", { text: value === null ? "—" : String(value) }));
    return cell;
  }

  function detailsOf(parts) {
    const boxes = parts.map((reading, k) => make("div", { class: "reading" }, [
      ...(readings[k] ? [make("h4", {}, [make("bdi", { text: readings[k] })])] : []),
      make("p", { dir: "auto", class: "words-of" }, shadedWords(reading, state.highlight)),
      make("p", { class: "small" }, heaviest(reading)),
    ]));
    return make("tr", { role: "row", class: "details" }, [make("td", { role: "cell", colspan: columns.length + 1 }, [make("div", { class: "readings" }, boxes)])]);
  }

  function heaviest([words, weights, evidence, largest]) {
    const order = words.map((_, i) => i).sort((a, b) => weights[b] - weights[a]).slice(0, 5).filter((i) => weights[i] > 0);
    if (!order.length) return [];
    return ["heaviest: ", ...order.flatMap((i, k) => {
      const said = evidence.length ? `, evidence ${formatNumber((evidence[i] / 100) * (largest || 0))}` : "";
      return [k ? "; " : "", make("bdi", { text: words[i] }), ` ${(weights[i] / 1000).toFixed(3)}${said}`];
    })];
  }

  function highlightChoice() {
    const choices = { weight: "weight", evidence: "signed evidence", both: "weight × evidence" };
    const inputs = Object.entries(choices).map(([value, text]) => {
      const input = make("input", { type: "radio", name: "highlight", value, checked: value === "weight" });
      input.addEventListener("change", () => {
        state.highlight = value;
        draw();
      });
      return make("label", {}, [input, ` ${text}`]);
    });
    return make("fieldset", {}, [make("legend", { text: "highlight" }), ...inputs]);
  }

  search.addEventListener("input", restart);
  const tools = make("form", { class: "tools", role: "search", "aria-label": "documents" }, [
    make("label", { class: "search" }, ["search ", search]),
    ...menus.filter(Boolean).map((menu) => menu.label),
    ...(data.signed ? [highlightChoice()] : []),
    status,
  ]);
  tools.addEventListener("submit", (event) => event.preventDefault());
  const head = make("thead", { role: "rowgroup" }, [make("tr", { role: "row" }, [...heads, make("th", { scope: "col", role: "columnheader", class: "preview", text: "text" })])]);
  const table = make("table", { role: "table", class: "documents", "aria-label": "documents" }, [head, body]);
  root.replaceChildren(tools, table, more);
  draw();
}
