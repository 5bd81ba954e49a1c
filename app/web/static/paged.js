/** Items of a collection, page after page, as far as they are needed. */

import { signal } from "@preact/signals";

import { get } from "./api.js";

const PAGE = 200; // the most that the service puts into one page

/**
 * {items, count, done, problem, need(n), close()}: `items` is an array that grows, `count` a signal of its length; need(n) loads pages
 * until there are n items or no more. `first` is the size of the first page, small so that it comes soon; `seen(page)` is told of each.
 */
export function pagedItems(path, { first = 60, seen } = {}) {
  const items = [];
  const [count, done, problem] = [signal(0), signal(false), signal(null)];
  let cursor = null;
  let loading = null;
  let needed = 0;
  let closed = false;

  async function load() {
    const limit = items.length ? PAGE : first;
    const page = await get(`${path}${path.includes("?") ? "&" : "?"}limit=${limit}${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
    if (closed) return;
    items.push(...page.items);
    cursor = page.next_cursor;
    seen?.(page);
    done.value = cursor === null;
    count.value = items.length;
  }

  function need(most) {
    needed = Math.max(needed, most);
    if (loading || closed || done.value || (items.length >= needed && items.length)) return loading;
    problem.value = null;
    loading = load().then(
      () => ((loading = null), need(0)),
      (error) => ((loading = null), (problem.value = error)),
    );
    return loading;
  }
  return { items, count, done, problem, need, close: () => (closed = true) };
}
