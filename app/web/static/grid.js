/** A grid of any number of items of which only those near the window are in the document. Knows no data set. */

import { html } from "htm/preact";
import { useLayoutEffect, useRef, useState } from "preact/hooks";

const AHEAD = 3; // windows of rows that are loaded before they are seen
const SPARE_ROWS = 3; // in the document above and below the window
const SETTLED_MS = 120; // after a leap of more than a window: what is leapt over is not loaded
const DRAG_PX = 6; // a shorter one is a press
const MOVES = { ArrowLeft: () => -1, ArrowRight: () => 1, ArrowUp: (columns) => -columns, ArrowDown: (columns) => columns };

/**
 * `pages` are of paged.js; cell(item, still) draws what a button holds, without its picture while the grid is not `still`; name(item) is its name for a screen reader; `width` is the
 * smallest of a cell and `caption` the height below its square, in pixels; `opened(place)` is called when a button is pressed.
 * `active` is {place, focus}: the cell that Tab leads to, and whether it gets the focus now; `setActive` takes another one.
 * With `chosen`, a Set of the items' `index`, a press chooses instead, and so does a drag: choose(indices, on).
 */
export function Grid({ pages, cell, name, label, width, caption, opened, active, setActive, chosen, choose }) {
  const place = useRef(null);
  const [shown, setShown] = useState({ columns: 1, side: width, first: 0, last: 0 });
  const [still, setStill] = useState(true);
  const settling = useRef({ first: 0, timer: 0 }); // the first row at the last look
  const waiting = useRef(null); // {place} of a cell that gets the focus once it is in the document
  const count = pages.count.value;
  const row = shown.side + caption;

  useLayoutEffect(() => {
    function measure() {
      const { top, width: room } = place.current.getBoundingClientRect();
      const columns = Math.max(2, Math.floor(room / width));
      const side = Math.floor(room / columns);
      const first = Math.max(0, Math.floor(-top / (side + caption)) - SPARE_ROWS);
      const inSight = Math.ceil(innerHeight / (side + caption));
      const last = first + inSight + 2 * SPARE_ROWS;
      if (Math.abs(first - settling.current.first) > inSight) {
        clearTimeout(settling.current.timer);
        settling.current.timer = setTimeout(() => setStill(true), SETTLED_MS);
        setStill(false);
      }
      settling.current.first = first;
      setShown((before) => (before.columns === columns && before.side === side && before.first === first && before.last === last ? before : { columns, side, first, last }));
      pages.need((last + AHEAD * (last - first)) * columns);
    }
    measure();
    const observer = new ResizeObserver(measure);
    observer.observe(place.current);
    addEventListener("scroll", measure, { passive: true });
    addEventListener("resize", measure);
    return () => {
      observer.disconnect();
      removeEventListener("scroll", measure);
      removeEventListener("resize", measure);
    };
  }, [pages]);

  useLayoutEffect(() => {
    if (!active.focus) return;
    waiting.current = active;
    if (!cellAt(active.place)) scrollTo({ top: scrollY + place.current.getBoundingClientRect().top + Math.floor(active.place / shown.columns) * row - innerHeight / 3, behavior: "instant" });
  }, [active]);
  useLayoutEffect(() => {
    const button = waiting.current && cellAt(waiting.current.place);
    if (!button) return;
    waiting.current = null;
    button.focus();
  });
  const cellAt = (at) => place.current.querySelector(`[data-place="${at}"]`);

  function move(event) {
    const step = MOVES[event.key]?.(shown.columns);
    const target = event.key === "Home" ? 0 : event.key === "End" ? count - 1 : step && active.place + step;
    if (target === undefined || target < 0 || target >= count) return;
    event.preventDefault();
    if (chosen && event.shiftKey) choose([active.place, target].map((at) => pages.items[at].index), true);
    setActive({ place: target, focus: true });
  }

  const [drag, setDrag] = useState(null); // {from, to}: corners of a rectangle, in pixels of the list
  const dragged = useRef(false); // the press that ends it is none
  const within = ({ clientX, clientY }) => {
    const { left, top } = place.current.getBoundingClientRect();
    return { x: clientX - left, y: clientY - top };
  };
  function beginDrag(event) {
    dragged.current = false;
    if (chosen && event.pointerType === "mouse" && event.button === 0) setDrag({ from: within(event), to: within(event) });
  }
  function moveDrag(event) {
    if (!drag) return;
    const to = within(event);
    if (Math.hypot(to.x - drag.from.x, to.y - drag.from.y) > DRAG_PX && !dragged.current) {
      dragged.current = true;
      place.current.setPointerCapture(event.pointerId);
    }
    setDrag({ ...drag, to });
  }
  function endDrag() {
    if (drag && dragged.current) choose(placesIn(drag).map((at) => pages.items[at].index), true);
    setDrag(null);
  }
  function placesIn({ from, to }) {
    const [left, right] = [from.x, to.x].sort((a, b) => a - b).map((x) => Math.floor(x / shown.side));
    const [top, bottom] = [from.y, to.y].sort((a, b) => a - b).map((y) => Math.floor(y / row));
    return Array.from({ length: (bottom - top + 1) * shown.columns }, (_, step) => top * shown.columns + step)
      .filter((at) => at >= 0 && at < count && at % shown.columns >= left && at % shown.columns <= right);
  }
  function press(at) {
    if (dragged.current) return;
    const { index } = pages.items[at];
    if (chosen) choose([index], !chosen.has(index));
    else opened(at);
  }

  const [from, to] = [shown.first * shown.columns, Math.min(count, shown.last * shown.columns)];
  const rows = Math.ceil(count / shown.columns);
  return html`<ul class="grid" aria-label=${label} ref=${place} onKeyDown=${move}
      onPointerDown=${beginDrag} onPointerMove=${moveDrag} onPointerUp=${endDrag} onPointerCancel=${() => setDrag(null)} data-choosing=${chosen ? "" : undefined}
      style=${{ height: `${rows * row}px`, "--columns": shown.columns, "--side": `${shown.side}px` }}>
    ${pages.items.slice(from, to).map((item, offset) => {
      const at = from + offset;
      const position = { transform: `translate(${(at % shown.columns) * shown.side}px, ${Math.floor(at / shown.columns) * row}px)`, height: `${row}px` };
      return html`<li key=${item.index} style=${position} aria-setsize=${pages.done.value ? count : -1} aria-posinset=${at + 1}>
        <button type="button" class="cell" data-place=${at} tabindex=${at === active.place ? 0 : -1} aria-label=${name(item)} aria-pressed=${chosen ? chosen.has(item.index) : undefined}
          onClick=${() => press(at)} onFocus=${() => at !== active.place && setActive({ place: at })}>${cell(item, still)}</button>
      </li>`;
    })}
    ${drag && dragged.current && html`<li class="drag" aria-hidden="true" style=${{ left: `${Math.min(drag.from.x, drag.to.x)}px`, top: `${Math.min(drag.from.y, drag.to.y)}px`,
      width: `${Math.abs(drag.to.x - drag.from.x)}px`, height: `${Math.abs(drag.to.y - drag.from.y)}px` }}></li>`}
  </ul>`;
}
