/** Items of a collection, page after page, as far as they are needed. */

import { signal } from "@preact/signals";

import { get } from "./api.js";

const PAGE = 200; // the most that the service puts into one page

/**
 * {items, count, done, problem, need(n), close()}: `items` is an array that grows, `count` a signal of its length; need(n) loads pages
 * until there are n items or no more. `first` is the size of the first page, small so that it comes soon. With `indices`, numbers of
 * images, the items are those images, in the order of the path page by page.
 */
export function pagedItems(path, { first = 60, indices } = {}) {
  const items = [];
  const [count, done, problem] = [signal(0), signal(false), signal(null)];
  let cursor = null;
  let requested = 0; // of the indices
  let loading = null;
  let needed = 0;
  let closed = false;

  async function load() {
    const limit = items.length ? PAGE : first;
    const part = indices?.slice(requested, requested + limit) ?? [];
    const more = [["limit", limit], ...(cursor ? [["cursor", cursor]] : []), ...part.map((index) => ["index", index])];
    const page = await get(`${path}${path.includes("?") ? "&" : "?"}${new URLSearchParams(more)}`);
    if (closed) return;
    items.push(...page.items);
    requested += part.length;
    cursor = page.next_cursor;
    done.value = indices ? requested === indices.length : cursor === null;
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
