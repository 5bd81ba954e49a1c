/** Line charts as SVG, coloured by the style sheet: they follow the colour scheme and scale with the page. Knows series of numbers only. */

import { announce, fill, h, svg, write } from "./dom.js";
import { measured, percent, short } from "./format.js";

const WIDTH = 460;
const HEIGHT = 210;
const MARGIN = { left: 44, right: 12, top: 10, bottom: 26 };

/**
 * A chart of series over epochs, or over what `over` names. draw([{name, title, points: [[x, y], ...]}]) replaces what it shows;
 * expect(on) says whether points are still to come: from then on it keeps its place, with or without any.
 * `share` charts run from 0 to at most 1 and read as per cent. Values at a point are read by pointer or by the arrow keys.
 */
export function chart({ title, share = false, over = "epoch" }) {
  const value = share ? (y) => percent(y) : measured;
  const plot = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", tabindex: 0, "aria-label": title });
  const legend = h("ul", { class: "legend" });
  const at = h("span", { class: "quiet" });
  const element = h("figure", { class: "chart", hidden: true }, h("figcaption", {}, h("strong", {}, title), at), plot, legend);
  let visible = [];
  let scale = null;
  let placed = false; // what has a place on the page keeps it
  let cursor = null; // where it is

  function expect(on) {
    placed ||= on;
    element.hidden = !placed && !visible.length;
    if (!visible.length) write(at, on ? "no points yet" : "no points");
  }

  function draw(series) {
    visible = series.filter((entry) => entry.points.length);
    element.hidden = !placed && !visible.length;
    if (!visible.length) return;
    scale = scales(visible, share);
    fill(plot, axes(scale, share ? (y) => percent(y, 0) : short), visible.map((entry, place) => line(entry, place, scale)), svg("g", { class: "cursor" }));
    point(null);
  }

  /** Values at an epoch, the last one without a pointer. */
  function point(x) {
    const last = Math.max(...visible.map((entry) => entry.points.at(-1)[0]));
    cursor = x;
    write(at, `${over} ${short(x ?? last)}`);
    fill(legend, visible.map((entry, place) => {
      const closest = x === null ? entry.points.at(-1) : nearest(entry.points, x);
      return h("li", { "data-series": place }, h("span", { class: "legend-name" }, entry.title), " ", h("span", { class: "legend-value" }, closest ? value(closest[1]) : "–"));
    }));
    plot.setAttribute("aria-label", `${title}: ${visible.map((entry) => `${entry.title} ${value(entry.points.at(-1)[1])}`).join(", ")}, ${over} ${short(last)}`);
    fill(plot.querySelector(".cursor"), x !== null && svg("line", { x1: scale.x(x), x2: scale.x(x), y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }),
      x !== null && visible.map((entry, place) => {
        const [px, py] = nearest(entry.points, x);
        return svg("circle", { cx: scale.x(px), cy: scale.y(py), r: 3.5, "data-series": place });
      }));
  }

  plot.addEventListener("pointermove", (event) => {
    if (!scale) return;
    const box = plot.getBoundingClientRect();
    const x = scale.inverse(((event.clientX - box.left) / box.width) * WIDTH);
    point(nearest(visible.flatMap((entry) => entry.points), x)[0]);
  });
  plot.addEventListener("pointerleave", () => scale && point(null));
  plot.addEventListener("blur", () => scale && point(null));
  plot.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || !scale) return;
    event.preventDefault();
    const xs = [...new Set(visible.flatMap((entry) => entry.points.map(([x]) => x)))].sort((a, b) => a - b);
    point(xs[cursor === null ? (by > 0 ? 0 : xs.length - 1) : Math.min(xs.length - 1, Math.max(0, xs.indexOf(cursor) + by))]);
    announce(`${at.textContent}: ${[...legend.children].map((entry) => entry.textContent.trim()).join(", ")}`);
  });
  return { element, draw, expect };
}

function nearest(points, x) {
  return points.reduce((best, entry) => (Math.abs(entry[0] - x) < Math.abs(best[0] - x) ? entry : best));
}

function scales(series, share) {
  const xs = series.flatMap((entry) => entry.points.map(([x]) => x));
  const ys = series.flatMap((entry) => entry.points.map(([, y]) => y));
  const [left, right] = [Math.floor(Math.min(...xs)), Math.ceil(Math.max(...xs))]; // whole epochs: some points lie within one
  const ticks = roundTicks(share ? Math.min(...ys, 0) : Math.min(0, ...ys), share ? Math.min(1, Math.max(...ys) * 1.05) : Math.max(...ys));
  const [low, high] = [ticks[0], ticks.at(-1)];
  const wide = WIDTH - MARGIN.left - MARGIN.right;
  const tall = HEIGHT - MARGIN.top - MARGIN.bottom;
  return {
    left, right, ticks,
    x: (x) => MARGIN.left + (right > left ? (x - left) / (right - left) : 0.5) * wide,
    y: (y) => MARGIN.top + (1 - (y - low) / (high - low || 1)) * tall,
    inverse: (pixel) => left + ((pixel - MARGIN.left) / wide) * (right - left),
  };
}

/** Four to six round values that enclose low and high. */
function roundTicks(low, high) {
  const rough = (high - low || 1) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((entry) => entry * power).find((entry) => entry >= rough);
  const first = Math.floor(low / step + 1e-9);
  const last = Math.max(first + 1, Math.ceil(high / step - 1e-9));
  return Array.from({ length: last - first + 1 }, (_, place) => (first + place) * step);
}

function axes(scale, label) {
  const between = Math.max(1, Math.ceil((scale.right - scale.left) / 6));
  const xs = [];
  for (let x = scale.left; x <= scale.right; x += between) xs.push(x);
  return [
    scale.ticks.map((y) => svg("g", { class: "tick" },
      svg("line", { x1: MARGIN.left, x2: WIDTH - MARGIN.right, y1: scale.y(y), y2: scale.y(y) }),
      svg("text", { x: MARGIN.left - 8, y: scale.y(y) + 4, "text-anchor": "end" }, label(y)))),
    xs.map((x) => svg("text", { class: "tick-x", x: scale.x(x), y: HEIGHT - 6, "text-anchor": "middle" }, String(x))),
  ];
}

function line({ points }, place, scale) {
  if (points.length === 1) return svg("circle", { class: "series-dot", "data-series": place, cx: scale.x(points[0][0]), cy: scale.y(points[0][1]), r: 3 });
  const path = points.map(([x, y], step) => `${step ? "L" : "M"}${scale.x(x).toFixed(1)} ${scale.y(y).toFixed(1)}`).join("");
  return svg("path", { class: "series", "data-series": place, d: path });
}
