/** Who is logged in, where people can log in: a link to do so, or the name and a button to log out. */

import { setCsrfToken } from "./api.js";
import { write } from "./dom.js";

export async function session() {
  if (!("login" in document.body.dataset)) return;
  const [logIn, person, logOut] = ["log-in", "person", "log-out"].map((id) => document.getElementById(id));
  const response = await fetch("/session").catch(() => null); // without a key: it asks for the cookie's session
  if (!response?.ok) {
    logIn.hidden = false;
    return;
  }
  const { name, csrf_token: token } = await response.json();
  setCsrfToken(token);
  write(person, name);
  person.hidden = logOut.hidden = false;
  logOut.addEventListener("click", async () => {
    await fetch("/logout", { method: "POST", headers: { "X-CSRF-Token": token } }).catch(() => null);
    location.reload();
  });
}
