/** Items of a collection, page after page, as far as they are needed. */

import { signal } from "@preact/signals";

import { LARGEST_PAGE, getPage } from "./api.js";

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
    const limit = items.length ? LARGEST_PAGE : first;
    const part = indices?.slice(requested, requested + limit) ?? [];
    const page = await getPage(path, limit, cursor, part.map((index) => ["index", index]));
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
