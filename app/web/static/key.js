/** The field for the API key: shown when the service needs one, hidden when it has been entered. */

import { hasKey, keys, setKey } from "./api.js";
import { write } from "./dom.js";

export function keyForm() {
  const form = document.getElementById("key-form");
  const input = document.getElementById("key");
  const help = document.getElementById("key-help");
  const prompt = help.textContent;
  keys.addEventListener("key-needed", () => {
    if (!form.hidden) return;
    write(help, hasKey() ? "The service does not accept this key." : prompt);
    form.hidden = false;
    input.focus();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!input.value.trim()) return;
    form.hidden = true;
    setKey(input.value.trim());
    input.value = "";
  });
}
