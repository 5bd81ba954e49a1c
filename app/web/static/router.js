/** Addresses: what the browser shows, moving to another one, and links that load no new page. */

import { signal } from "@preact/signals";

const OWN = "/ui/";

/** {path, query, visit}: `visit` counts how often another address was gone to, 0 where the page was loaded. */
export const address = signal(read(0));

function read(visit) {
  return { path: location.pathname.replace(/(.)\/+$/, "$1"), query: new URLSearchParams(location.search), visit };
}

/** Go to an address of this page; `replace` leaves no step to go back to, and the focus where it is. */
export function navigate(to, { replace = false } = {}) {
  const same = new URL(to, location.href).href === location.href;
  history[replace || same ? "replaceState" : "pushState"](null, "", to);
  address.value = read(address.value.visit + Number(!replace));
  if (!replace) scrollTo({ top: 0, behavior: "instant" });
}

/** Change parameters of the address in place; null and "" remove one. */
export function setQuery(changes) {
  const query = new URLSearchParams(address.value.query);
  for (const [name, value] of Object.entries(changes)) {
    query.delete(name);
    for (const entry of [value].flat()) if (entry !== null && entry !== undefined && entry !== "") query.append(name, entry);
  }
  const text = query.toString();
  navigate(location.pathname + (text ? `?${text}` : ""), { replace: true });
}

/** Listen to the browser's buttons and to clicks on links. */
export function startRouter() {
  addEventListener("popstate", () => (address.value = read(address.value.visit + 1)));
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href]");
    const other = event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey;
    if (!link || other || link.target || link.download || link.origin !== location.origin) return;
    if (!link.pathname.startsWith(OWN)) return;
    event.preventDefault();
    navigate(link.href);
  });
}
