"use strict";
// Gives each part of the page its data; what a page lacks is passed over.

(function start() {
  const read = (name) => {
    const element = document.getElementById(`data-${name}`);
    return element ? JSON.parse(element.textContent) : null;
  };
  const part = (name) => document.querySelector(`[data-part="${name}"]`);
  document.documentElement.classList.add("scripted");
  const heads = read("heads");
  if (heads) headGrid(part("heads"), heads);
  const panels = read("curves"), documents = read("documents");
  if (panels && panels.length) curves(part("curves"), panels);
  if (documents && documents.rows.length) {
    documentTable(part("documents"), documents);
    const words = document.querySelector("table.words");
    if (words) wordButtons(words, documents);
  }
  // A meaning that lies in a closed box opens it.
  const opened = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let box = target && target.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
  };
  addEventListener("hashchange", opened);
  opened();
})();
