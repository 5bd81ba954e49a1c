/** What every view has: a heading that gets the focus when the view is gone to, and the title of the window. */

import { html } from "htm/preact";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";

import { address } from "../router.js";

/** `title` is also the window's; `lead` a sentence below it; `actions` stand beside it, and have their place when they are `null`; `wide` uses the whole window. */
export function View({ title, lead, actions, wide, class: style = "", children }) {
  const heading = useRef(null);
  useLayoutEffect(() => {
    document.title = `${title} · DeNLL`;
  }, [title]);
  const { visit } = address.value;
  useEffect(() => {
    if (visit > 0) heading.current.focus({ preventScroll: true });
  }, [visit]);
  return html`<section class=${`view ${wide ? "wide" : ""} ${style}`}>
    <header class="view-head">
      <div><h1 tabindex="-1" ref=${heading}>${title}</h1>${lead && html`<p class="lead">${lead}</p>`}</div>
      ${actions !== undefined && html`<div class="actions">${actions}</div>`}
    </header>
    ${children}
  </section>`;
}

/** Runs `start` on markup that is in the document; what it returns ends it. */
export function useMounted(start) {
  useEffect(() => {
    const end = start();
    return () => end?.();
  }, []);
}
