/** The keys of the review, and the dialog that lists them. */

import { html } from "htm/preact";
import { useEffect, useRef } from "preact/hooks";

import { Dialog } from "./dialog.js";

const KEYS = [
  ["→ ←", "Next and previous picture"], ["Enter", "Accept the suggested label"], ["1 to 9", "Give the label with this number"], ["/", "Look for a class by its name"],
  ["C", "Confirm the given label"], ["X", "Exclude the picture"], ["U", "Undo, as often as you like"], ["Space", "Select; what you decide then is for all that are selected"],
  ["M", "Show what the model looks at"], ["?", "These keys"],
];
const ACTIONS = {
  ArrowRight: "next", ArrowLeft: "previous", Enter: "accept", c: "confirm", x: "exclude", u: "undo", " ": "select", m: "mask", "?": "help", "/": "search",
};

/** Call the action of a key, unless it is meant for a control. */
export function useKeys(actions, active) {
  const latest = useRef(actions);
  latest.current = actions;
  useEffect(() => {
    if (!active) return undefined;
    function key(event) {
      if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, dialog")) return;
      const pressed = event.key.length === 1 ? event.key.toLowerCase() : event.key;
      if (event.target.closest("button, a, summary") && ["Enter", " "].includes(pressed)) return;
      if (/^[1-9]$/.test(pressed)) latest.current.choose(Number(pressed) - 1);
      else if (ACTIONS[pressed]) latest.current[ACTIONS[pressed]]();
      else return;
      event.preventDefault();
    }
    document.addEventListener("keydown", key);
    return () => document.removeEventListener("keydown", key);
  }, [active]);
}

export function KeyHelp({ closed }) {
  return html`<${Dialog} title="Keys" closed=${closed}>
    <dl class="facts keys">${KEYS.map(([key, text]) => html`<dt><kbd>${key}</kbd></dt><dd>${text}</dd>`)}</dl>
  <//>`;
}
