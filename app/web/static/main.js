/** Starts the page: the field for the key, the router, and the view of the address. */

import { signal } from "@preact/signals";
import { html } from "htm/preact";
import { render } from "preact";

import { keys } from "./api.js";
import { keepFocus } from "./focus.js";
import { keyForm } from "./key.js";
import { address, navigate, startRouter } from "./router.js";
import { routeOf } from "./routes.js";
import { session } from "./session.js";

const current = signal(null); // {View, parameters, key}
const keyChanges = signal(0); // a view is made anew with another key

function App() {
  if (!current.value) return null;
  const { View, parameters, key } = current.value;
  return html`<${View} key=${`${key} ${keyChanges.value}`} ...${parameters} />`;
}

/** Load the view of an address and show it; of several addresses in a row, the last. */
async function show({ path }) {
  if (path === "/ui") return navigate("/ui/datasets", { replace: true });
  const { load, parameters, section } = routeOf(path);
  for (const link of document.querySelectorAll("#sections a")) {
    if (link.pathname === section) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const View = await load();
  if (address.value.path === path) current.value = { View, parameters, key: path };
  return undefined;
}

keyForm();
keepFocus(document.getElementById("main"));
await session(); // a change by session needs its token
startRouter();
keys.addEventListener("key-changed", () => (keyChanges.value += 1));
render(html`<${App} />`, document.getElementById("main"));
address.subscribe(show);
