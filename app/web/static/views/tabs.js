/** Parts of a view that the address names by `tab`. They are links, so that each has an address. */

import { html } from "htm/preact";
import { useLayoutEffect, useRef } from "preact/hooks";

import { setQuery } from "../router.js";

/** tabs: [[name, title]]; the first is the one without a name in the address. */
export function Tabs({ label, tabs, chosen }) {
  const go = (event, name) => {
    event.preventDefault();
    setQuery({ tab: name === tabs[0][0] ? null : name });
  };
  const place = useRef(null);
  useLayoutEffect(() => place.current.querySelector("[aria-current]").scrollIntoView({ block: "nearest", inline: "nearest", behavior: "instant" }), [chosen]);
  return html`<nav class="tabs" aria-label=${label} ref=${place}>
    ${tabs.map(([name, title]) => html`<a href=${`?tab=${name}`} aria-current=${name === chosen ? "page" : undefined} onClick=${(event) => go(event, name)}>${title}</a>`)}
  </nav>`;
}
