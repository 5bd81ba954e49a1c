/** The field for the API key: appears when the service asks for one, and is gone when it has been given. */

import { keys, setKey } from "./api.js";

export function keyForm() {
  const form = document.getElementById("key-form");
  const input = document.getElementById("key");
  keys.addEventListener("key-needed", () => {
    if (!form.hidden) return;
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
