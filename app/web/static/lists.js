/** A paged list that keeps itself fresh: rows are kept by id, so that open rows, focus and live parts survive a refresh. */

import { getItems } from "./api.js";
import { fill } from "./dom.js";
import { show } from "./problems.js";

const FIRST = 20; // rows; "Show older" doubles them
const AT_ONCE = 100; // rows that are refreshed at the stated period; more are refreshed less often

/**
 * rows(item) makes {element, update(item), remove?()} once per id; prepare(items), if there is one, is awaited before. Returns {refresh(), close(), row(id)}.
 * Rows are newest first, and every one can be reached. `busy(items)` says whether to refresh soon; nothing is requested while the page is hidden.
 */
export function pagedList({ path, list, more, problem, rows, prepare, empty, busy, quickMs, slowMs, loaded }) {
  const rowsById = new Map();
  let items = [];
  let limit = FIRST;
  let timer = 0;
  let loading = null;
  let closed = false;

  async function load() {
    clearTimeout(timer);
    try {
      const loadedRows = await getItems(path, limit);
      await prepare?.(loadedRows.items);
      if (closed) return;
      items = loadedRows.items;
      more.hidden = !loadedRows.more;
      draw();
      show(problem, null);
      loaded?.(items);
    } catch (error) {
      if (!closed) show(problem, error);
    } finally {
      if (!closed) timer = setTimeout(again, (busy(items) ? quickMs : slowMs) * Math.max(1, items.length / AT_ONCE));
    }
  }

  /** One request at a time: a call during a request starts another one right after it. */
  function refresh() {
    loading = (loading || Promise.resolve()).catch(() => {}).then(load);
    return loading;
  }

  function again() {
    if (!document.hidden) refresh();
  }

  function draw() {
    const present = new Set(items.map((item) => item.id));
    for (const [id, row] of rowsById) {
      if (present.has(id)) continue;
      row.remove?.();
      row.element.remove();
      rowsById.delete(id);
    }
    items.forEach((item, place) => {
      const row = rowsById.get(item.id) || rows(item);
      rowsById.set(item.id, row);
      row.update(item);
      if (list.children[place] !== row.element) list.insertBefore(row.element, list.children[place] || null);
    });
    if (!items.length) fill(list, empty());
    else if (list.children.length > items.length) [...list.children].slice(items.length).forEach((node) => node.remove());
  }

  /** The focus goes to the first of the new rows: the button may be gone. */
  more.addEventListener("click", async () => {
    const before = items.length;
    limit *= 2;
    await refresh();
    list.children[before]?.querySelector("a, button")?.focus();
  });
  document.addEventListener("visibilitychange", again);

  /** Stop: the list is no longer shown. */
  function close() {
    closed = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", again);
    for (const row of rowsById.values()) row.remove?.();
  }
  return { close, refresh, row: (id) => rowsById.get(id) };
}
