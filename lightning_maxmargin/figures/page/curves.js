"use strict";
// Curves to read off, to zoom into and to switch on and off, by mouse, touch or keys.

const PLOT = { height: 250, zoom: 0.6, decades: 6, floor: 1e-17 };

// Powers of ten, so far apart that at most PLOT.decades of them are written.
function decades(low, high) {
  const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
  const step = Math.max(1, Math.ceil((last - first) / PLOT.decades)), found = [];
  for (let k = first; k <= last; k += 1) if (k % step === 0) found.push(Number(`1e${k}`));
  return found.length ? found : [low, high];
}

function onLog(axis, isLog) {
  return isLog ? { ...axis, splits: (u, i, low, high) => decades(low, high), filter: (u, splits) => splits } : axis;
}

function curves(root, panels) {
  root.classList.toggle("even", panels.length % 3 !== 0);
  const plots = panels.map((panel) => curvePlot(root, panel));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach((plot) => plot.rebuild()));
  new ResizeObserver(() => plots.forEach((plot) => plot.fit())).observe(root);
}

function curvePlot(root, panel) {
  const live = make("span", { class: "unseen", role: "status" });
  const place = make("span", { class: "place" });
  const reset = make("button", { type: "button", text: "whole range", hidden: true });
  const buttons = panel.lines.map((line, i) => {
    const value = make("span", { class: "value" });
    const swatch = make("span", { class: line.dash ? "swatch dashed" : "swatch" });
    swatch.style.setProperty("--c", `var(--${line.color})`);
    const button = make("button", { type: "button", "aria-pressed": "true", title: "press to hide or show" }, [swatch, ` ${line.label} `, value]);
    button.addEventListener("click", () => {
      const isShown = button.getAttribute("aria-pressed") === "false";
      button.setAttribute("aria-pressed", String(isShown));
      plot.setSeries(i + 1, { show: isShown });
    });
    return { button, value };
  });
  const canvas = make("div", { class: "canvas", tabindex: "0", role: "group", "aria-label": `${said(panel)} Arrow keys read the values, plus and minus zoom, zero shows the whole range.` });
  root.append(make("section", { class: "plot" }, [
    make("h3", { text: panel.title }), make("div", { class: "legend" }, [...buttons.map((entry) => entry.button), place, reset]), canvas, live,
  ]));
  let plot = null;
  reset.addEventListener("click", whole);
  canvas.addEventListener("keydown", key);
  rebuild();

  function said({ title, lines, data }) {
    const ends = lines.map((line, i) => {
      const known = data[i + 1].filter((y) => y !== null);
      return `${line.label} ends at ${shown(known[known.length - 1])}`;
    });
    return `${title}: ${ends.join(", ")}.`;
  }

  function shown(y) {
    return panel.logY && y !== null && y <= PLOT.floor ? "at most 1e-17" : formatNumber(y);
  }

  function color(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  }

  function options() {
    const axis = { stroke: color("soft"), grid: { stroke: color("line"), width: 1 }, ticks: { stroke: color("line") }, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif", labelSize: 18 };
    const values = (_, ticks) => ticks.map((x) => (x === null ? "" : formatNumber(x)));
    return {
      width: width(), height: PLOT.height, legend: { show: false },
      cursor: { drag: { x: true, y: false, setScale: true }, y: false },
      scales: { x: { time: false, distr: panel.logX ? 3 : 1 }, y: { distr: panel.logY ? 3 : 1 } },
      axes: [onLog({ ...axis, label: panel.x, size: 34, values, space: 60 }, panel.logX), onLog({ ...axis, label: panel.y, size: 58, values }, panel.logY)],
      series: [{}, ...panel.lines.map((line, i) => ({
        label: line.label, stroke: color(line.color), width: 2, dash: line.dash ? [6, 4] : undefined, spanGaps: true,
        show: buttons[i].button.getAttribute("aria-pressed") === "true",
        points: { show: panel.data[i + 1].filter((y) => y !== null).length <= 5, size: 7 },
      }))],
      hooks: { setCursor: [read], setScale: [(u, name) => name === "x" && zoomed(u)] },
    };
  }

  function width() {
    return Math.max(canvas.clientWidth, 200);
  }

  function rebuild() {
    plot?.destroy();
    plot = new uPlot(options(), panel.data, canvas);
    read(plot);
  }

  function fit() {
    if (plot.width !== width()) plot.setSize({ width: width(), height: PLOT.height });
  }

  function zoomed(u) {
    const xs = panel.data[0];
    reset.hidden = u.scales.x.min <= xs[0] && u.scales.x.max >= xs[xs.length - 1];
  }

  function read(u) {
    const at = u.cursor.idx;
    place.textContent = at === null || at === undefined ? "" : `${panel.x.replace(" (log)", "")} ${formatNumber(panel.data[0][at])}`;
    buttons.forEach(({ value }, i) => {
      value.textContent = shown(valueAt(panel.data[i + 1], at));
    });
  }

  function valueAt(ys, at) {
    let i = at === null || at === undefined ? ys.length - 1 : at;
    while (i > 0 && ys[i] === null) i -= 1;
    return ys[i];
  }

  function whole() {
    const xs = panel.data[0];
    plot.setScale("x", { min: xs[0], max: xs[xs.length - 1] });
    canvas.focus();
  }

  function key(event) {
    const xs = panel.data[0], last = xs.length - 1, at = plot.cursor.idx ?? last;
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -last, End: last }[event.key];
    if (step !== undefined) go(Math.min(last, Math.max(0, at + step)));
    else if (event.key === "+" || event.key === "=") zoom(at, PLOT.zoom);
    else if (event.key === "-") zoom(at, 1 / PLOT.zoom);
    else if (event.key === "0" || event.key === "Escape") whole();
    else return;
    event.preventDefault();
  }

  function go(i) {
    plot.setCursor({ left: plot.valToPos(panel.data[0][i], "x"), top: 10 });
    live.textContent = [place.textContent, ...panel.lines.map((line, k) => `${line.label} ${shown(valueAt(panel.data[k + 1], i))}`)].join(", ");
  }

  function zoom(at, factor) {
    const xs = panel.data[0], { min, max } = plot.scales.x, on = panel.logX ? Math.log : (x) => x, off = panel.logX ? Math.exp : (x) => x;
    const middle = on(xs[at]), low = middle - (middle - on(min)) * factor, high = middle + (on(max) - middle) * factor;
    plot.setScale("x", { min: Math.max(off(low), xs[0]), max: Math.min(off(high), xs[xs.length - 1]) });
  }

  return { rebuild, fit };
}
