/** A dialog of the browser's own: it keeps the focus inside, Escape closes it, and the focus goes back. */

import { html } from "htm/preact";
import { useEffect, useId, useRef } from "preact/hooks";

export function Dialog({ title, closed, children }) {
  const dialog = useRef(null);
  const id = useId();
  useEffect(() => {
    const before = document.activeElement;
    dialog.current.showModal();
    return () => before?.isConnected && before.focus();
  }, []);
  return html`<dialog class="dialog" aria-labelledby=${id} ref=${dialog} onClose=${closed} onClick=${(event) => event.target === dialog.current && dialog.current.close()}>
    <header><h2 id=${id}>${title}</h2><button type="button" class="quiet-button" onClick=${() => dialog.current.close()}>Close</button></header>
    <div class="dialog-body">${children}</div>
  </dialog>`;
}
