/** Points on a canvas that are moved, enlarged, pointed at and drawn around. Knows no pictures. */

import { html } from "htm/preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

const MARGIN = 0.05; // of the shorter side, around all points
const REACH = 14; // pixels from the pointer within which a point is meant
const STEP = 0.15; // of the shorter side, by an arrow key
const ZOOM = 1.4;
const PANS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

/**
 * `x` and `y` are coordinates by row, `rows` those that are drawn, colour(row) is CSS. `chosen` are rows; choose(rows) takes those drawn
 * around, or the one that was pressed, or what is in sight; pointed(row) tells the row at the pointer, or null.
 */
export function Scatter({ label, x, y, rows, colour, chosen, choose, pointed }) {
  const [canvas, overlay] = [useRef(null), useRef(null)];
  const [size, setSize] = useState(null); // {width, height} in CSS pixels
  const [frame, setFrame] = useState(() => fit(x, y)); // {x, y: its middle, scale: coordinates across the shorter side}
  const path = useRef([]); // what is being drawn around points, in CSS pixels

  useLayoutEffect(() => {
    const observer = new ResizeObserver(([{ contentRect: { width, height } }]) => setSize({ width, height }));
    observer.observe(canvas.current);
    return () => observer.disconnect();
  }, []);
  const pixels = size && Math.min(size.width, size.height) / frame.scale; // of a coordinate
  const across = (row) => size.width / 2 + (x[row] - frame.x) * pixels;
  const down = (row) => size.height / 2 - (y[row] - frame.y) * pixels;
  useEffect(() => size && draw(canvas.current, size, rows, across, down, colour, new Set(chosen)), [size, frame, rows, chosen]);

  /** Enlarge around a place in the canvas, by default its middle. */
  function zoom(factor, at = { x: size.width / 2, y: size.height / 2 }) {
    setFrame((before) => {
      const scale = before.scale / factor;
      const side = Math.min(size.width, size.height);
      const [right, up] = [(at.x - size.width / 2) / side, (size.height / 2 - at.y) / side];
      return { scale, x: before.x + right * (before.scale - scale), y: before.y + up * (before.scale - scale) };
    });
  }
  function wheel(event) {
    event.preventDefault();
    zoom(event.deltaY < 0 ? ZOOM : 1 / ZOOM, place(event));
  }
  useEffect(() => {
    const element = overlay.current;
    element.addEventListener("wheel", wheel, { passive: false }); // Preact's would be passive: the page would scroll
    return () => element.removeEventListener("wheel", wheel);
  });

  function key(event) {
    const pan = PANS[event.key];
    if (pan) setFrame((before) => ({ ...before, x: before.x + pan[0] * STEP * before.scale, y: before.y + pan[1] * STEP * before.scale }));
    else if (event.key === "+" || event.key === "=") zoom(ZOOM);
    else if (event.key === "-") zoom(1 / ZOOM);
    else if (event.key === "0") setFrame(fit(x, y));
    else if (event.key === "Enter") choose(inSight());
    else if (event.key === "Escape") choose([]);
    else return;
    event.preventDefault();
  }
  const inSight = () => rows.filter((row) => across(row) >= 0 && across(row) <= size.width && down(row) >= 0 && down(row) <= size.height);

  function nearest(at) {
    let [best, least] = [null, REACH ** 2];
    for (const row of rows) {
      const distance = (across(row) - at.x) ** 2 + (down(row) - at.y) ** 2;
      if (distance < least) [best, least] = [row, distance];
    }
    return best;
  }
  function begin(event) {
    if (event.button || !size) return;
    overlay.current.setPointerCapture(event.pointerId);
    path.current = [place(event)];
  }
  function move(event) {
    if (!path.current.length) return size && pointed(nearest(place(event)));
    path.current.push(place(event));
    return outline(overlay.current, size, path.current);
  }
  function end(event) {
    const drawn = path.current;
    path.current = [];
    outline(overlay.current, size, []);
    if (event.type === "pointercancel" || !drawn.length) return;
    const span = Math.max(...drawn.map((at) => Math.hypot(at.x - drawn[0].x, at.y - drawn[0].y)));
    if (span < 4) choose([nearest(place(event))].filter((row) => row !== null));
    else choose(rows.filter((row) => inside(drawn, across(row), down(row))));
  }
  return html`<div class="scatter">
    <canvas ref=${canvas} role="img" aria-label=${label}></canvas>
    <canvas ref=${overlay} class="scatter-overlay" tabindex="0" role="application" aria-label="Draw around points to choose them. Arrows move the map, plus and minus enlarge it, Enter chooses what is in sight."
      onPointerDown=${begin} onPointerMove=${move} onPointerUp=${end} onPointerCancel=${end} onPointerLeave=${() => pointed(null)} onKeyDown=${key}></canvas>
    <div class="scatter-buttons"><button type="button" class="small" aria-label="Enlarge" onClick=${() => zoom(ZOOM)}>+</button>
      <button type="button" class="small" aria-label="Make smaller" onClick=${() => zoom(1 / ZOOM)}>−</button>
      <button type="button" class="small" onClick=${() => setFrame(fit(x, y))}>All</button>
      <button type="button" class="small" onClick=${() => choose(inSight())}>Choose what is in sight</button></div>
  </div>`;
}

const place = (event) => ({ x: event.offsetX, y: event.offsetY });

/** The frame that shows all points. */
function fit(x, y) {
  const range = (values) => values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
  const [[left, right], [bottom, top]] = [range(x), range(y)];
  return { x: (left + right) / 2, y: (bottom + top) / 2, scale: (1 + 2 * MARGIN) * Math.max(right - left, top - bottom, 1e-6) };
}

function sharp(canvas, { width, height }) {
  [canvas.width, canvas.height] = [width * devicePixelRatio, height * devicePixelRatio];
  const context = canvas.getContext("2d");
  context.scale(devicePixelRatio, devicePixelRatio);
  return context;
}

function draw(canvas, size, rows, across, down, colour, chosen) {
  const context = sharp(canvas, size);
  const side = rows.length > 20000 ? 2 : rows.length > 3000 ? 3 : 5;
  context.globalAlpha = chosen.size ? 0.25 : 0.85;
  for (const row of rows) {
    context.fillStyle = colour(row);
    context.fillRect(across(row) - side / 2, down(row) - side / 2, side, side);
  }
  context.globalAlpha = 1;
  for (const row of rows) {
    if (!chosen.has(row)) continue;
    context.fillStyle = colour(row);
    context.fillRect(across(row) - side / 2 - 1, down(row) - side / 2 - 1, side + 2, side + 2);
  }
}

function outline(canvas, size, path) {
  const context = sharp(canvas, size);
  if (path.length < 2) return;
  context.beginPath();
  for (const at of path) context.lineTo(at.x, at.y);
  context.closePath();
  context.strokeStyle = getComputedStyle(canvas).color;
  context.setLineDash([5, 4]);
  context.stroke();
}

/** Whether a place is inside a closed path: how often a ray to the right of it crosses. */
function inside(path, x, y) {
  let odd = false;
  for (let at = 0, before = path.length - 1; at < path.length; before = at++) {
    const [a, b] = [path[at], path[before]];
    if (a.y > y !== b.y > y && x < ((b.x - a.x) * (y - a.y)) / (b.y - a.y) + a.x) odd = !odd;
  }
  return odd;
}
