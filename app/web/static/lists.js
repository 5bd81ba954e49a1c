/** A paged list that keeps itself fresh: rows are kept by id, so that open rows, focus and live parts survive a refresh. */

import { get } from "./api.js";
import { fill } from "./dom.js";
import { show } from "./problems.js";

const PAGE = 20;

/**
 * rows(item) makes {element, update(item), remove?()} once per id. Returns {refresh(), redraw(), row(id)}.
 * `busy(items)` says whether to look again soon; nothing is asked while the page is hidden.
 */
export function pagedList({ path, list, more, problem, rows, empty, busy, quickMs, slowMs, loaded }) {
  const known = new Map();
  let items = [];
  let limit = PAGE;
  let timer = 0;
  let loading = null;

  async function load() {
    clearTimeout(timer);
    try {
      const page = await get(`${path}?limit=${limit}`);
      items = page.items;
      more.hidden = !page.next_cursor;
      draw();
      show(problem, null);
      loaded?.(items);
    } catch (error) {
      show(problem, error);
    } finally {
      timer = setTimeout(again, busy(items) ? quickMs : slowMs);
    }
  }

  /** One request at a time: whoever asks meanwhile gets a fresh one right after. */
  function refresh() {
    loading = (loading || Promise.resolve()).catch(() => {}).then(load);
    return loading;
  }

  function again() {
    if (!document.hidden) refresh();
  }

  function draw() {
    const present = new Set(items.map((item) => item.id));
    for (const [id, row] of known) {
      if (present.has(id)) continue;
      row.remove?.();
      row.element.remove();
      known.delete(id);
    }
    items.forEach((item, place) => {
      const row = known.get(item.id) || rows(item);
      known.set(item.id, row);
      row.update(item);
      if (list.children[place] !== row.element) list.insertBefore(row.element, list.children[place] || null);
    });
    if (!items.length) fill(list, empty());
    else if (list.children.length > items.length) [...list.children].slice(items.length).forEach((each) => each.remove());
  }

  more.addEventListener("click", () => {
    limit = Math.min(limit + PAGE, 100);
    refresh();
  });
  document.addEventListener("visibilitychange", again);
  return { refresh, redraw: () => items.length && draw(), row: (id) => known.get(id) };
}
