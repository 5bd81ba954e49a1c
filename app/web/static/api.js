/** The public HTTP API as functions. Knows the key, problem documents and event streams; knows nothing of the page. */

const KEY = "denll-key";

/** A problem document of the service (RFC 9457), or an unreachable service. */
export class Problem extends Error {
  constructor(document, status = 0) {
    super(document.detail || document.title || "Something went wrong");
    this.type = document.type || "";
    this.title = document.title || "Something went wrong";
    this.detail = document.detail || "";
    this.hint = document.hint || "";
    this.errors = document.errors || [];
    this.columns = document.columns || []; // of an uploaded table, where naming one is the way out
    this.sampleRow = document.sample_row || {};
    this.requestId = document.request_id || "";
    this.status = status;
  }
}

const unreachable = () =>
  new Problem({ title: "The service does not answer", detail: "It may be starting, or it has been stopped. This page tries again by itself." });

/** Tells the page when a key is needed ("key-needed") or has changed ("key-changed"). */
export const keys = new EventTarget();

export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
  keys.dispatchEvent(new Event("key-changed"));
}

export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

let csrfToken = null;

/** The token of the session, where somebody is logged in: a change by session needs it. */
export function setCsrfToken(token) {
  csrfToken = token;
}

/** Headers with the key, if there is one, or else with the token of the session. */
export function authorized(headers = {}) {
  const key = sessionStorage.getItem(KEY);
  if (key) return { ...headers, Authorization: `Bearer ${key}` };
  return csrfToken ? { ...headers, "X-CSRF-Token": csrfToken } : headers;
}

function refusal(status, text) {
  if (status === 401) keys.dispatchEvent(new Event("key-needed"));
  try {
    return new Problem(JSON.parse(text), status);
  } catch {
    return new Problem({ title: `The service answered ${status}`, detail: text.slice(0, 200) }, status);
  }
}

async function fetchOk(path, { headers, ...options } = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: authorized(headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw unreachable();
  }
  if (!response.ok) throw refusal(response.status, await response.text());
  return response;
}

async function send(method, path, body, headers = {}) {
  const options = { method, headers };
  if (body !== undefined) {
    options.headers = { "Content-Type": "application/json", ...headers };
    options.body = JSON.stringify(body);
  }
  const response = await fetchOk(path, options);
  return response.status === 204 ? null : response.json();
}

export const get = async (path, options) => (await fetchOk(path, options)).json();

export const LARGEST_PAGE = 200; // the most items that the service puts into one page

/** One page of a collection; `cursor` is `next_cursor` of the page before, null for the first; `more` are further parameters, as pairs. */
export function getPage(path, limit, cursor, more = []) {
  const parameters = new URLSearchParams([["limit", limit], ...(cursor ? [["cursor", cursor]] : []), ...more]);
  return get(`${path}${path.includes("?") ? "&" : "?"}${parameters}`);
}

/** The first `most` items of a collection, all of them by default, from as many pages as that takes: {items, more, last: the last page}; more: there are others. */
export async function getItems(path, most = Infinity) {
  const items = [];
  let last = null;
  do {
    last = await getPage(path, Math.min(LARGEST_PAGE, most - items.length), last?.next_cursor);
    items.push(...last.items);
  } while (last.next_cursor && items.length < most);
  return { items, more: last.next_cursor !== null, last };
}

export const getText = async (path) => (await fetchOk(path)).text();
export const post = (path, body, headers) => send("POST", path, body, headers);
export const put = (path, body) => send("PUT", path, body);
export const patch = (path, body) => send("PATCH", path, body);
export const remove = (path) => send("DELETE", path);

/** POST a File as it is. */
export async function postFile(path, file, signal) {
  const headers = { "Content-Type": file.type || "application/octet-stream" };
  return (await fetchOk(path, { method: "POST", body: file, headers, signal })).json();
}

/** A path as an image address. Images cannot carry a key, so with one the bytes are fetched first; the caller revokes blob addresses. */
export async function imageAddress(path) {
  if (!hasKey()) return path;
  return URL.createObjectURL(await (await fetchOk(path)).blob());
}

export async function blob(path, headers) {
  return (await fetchOk(path, { headers })).blob();
}

/** Multipart upload with progress(sent, total); fetch cannot report what has been sent, XMLHttpRequest can. */
export function upload(path, form, progress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    for (const [name, value] of Object.entries(authorized())) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", (event) => progress(event.loaded, event.total));
    request.addEventListener("load", () => {
      if (request.status < 300) resolve(JSON.parse(request.responseText));
      else reject(refusal(request.status, request.responseText));
    });
    request.addEventListener("error", () => reject(unreachable()));
    request.addEventListener("abort", () => reject(new DOMException("aborted", "AbortError")));
    signal?.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

/** A key for one creating request, so that repeating it after a lost answer creates nothing twice. */
export function idempotencyKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
