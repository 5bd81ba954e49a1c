/** Pictures that are chosen in one view and reviewed in another: their numbers, kept in this tab. */

const PREFIX = "selection-";

/** Keep numbers of images, instead of those kept before; returns the name to find them by. */
export function keepSelection(indices) {
  for (const key of Object.keys(sessionStorage)) if (key.startsWith(PREFIX)) sessionStorage.removeItem(key);
  const name = Date.now().toString(36);
  sessionStorage.setItem(PREFIX + name, JSON.stringify(indices));
  return name;
}

/** The numbers kept under a name; null when others took their place, or in another tab. */
export function selection(name) {
  return JSON.parse(sessionStorage.getItem(PREFIX + name));
}
