/** Values as people read them. Knows words, units and times, nothing of the page or the service. */

const LOCALE = "en";

export function number(value, digits = 0) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  return value.toLocaleString(LOCALE, { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export function percent(share, digits = 1) {
  return share === null || share === undefined ? "–" : `${number(100 * share, digits)} %`;
}

/** Three significant digits, whatever the size. */
export function short(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1000) return number(value);
  if (size !== 0 && size < 0.001) return value.toExponential(1);
  return Number(value.toPrecision(3)).toLocaleString(LOCALE, { maximumFractionDigits: 6 });
}

/** Three significant digits, zeros at the end included: what is measured again and again stays as wide. */
export function measured(value) {
  const size = Math.abs(value);
  return size >= 0.001 && size < 100 ? number(value, 2 - Math.floor(Math.log10(size))) : short(value);
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let power = 0;
  while (value >= 1000 && power < units.length - 1) {
    value /= 1000;
    power += 1;
  }
  return `${number(value, power > 0 && value < 100 ? 1 : 0)} ${units[power]}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (seconds < 10) return `${number(seconds, 1)} s`;
  if (seconds < 90) return `${number(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

export function ago(time) {
  const seconds = Math.max(0, (Date.now() - Date.parse(time)) / 1000);
  if (Number.isNaN(seconds)) return "";
  if (seconds < 45) return "just now";
  if (seconds < 3600) return `${Math.max(1, Math.round(seconds / 60))} min ago`;
  if (seconds < 86400) return `${Math.round(seconds / 3600)} h ago`;
  return new Date(time).toLocaleDateString(LOCALE, { day: "numeric", month: "short", year: "numeric" });
}

/** batch_size -> Batch size */
export function words(name) {
  const text = String(name).replaceAll("_", " ").trim();
  return text.charAt(0).toUpperCase() + text.slice(1);
}

export function plural(count, one, many = `${one}s`) {
  return `${number(count)} ${count === 1 ? one : many}`;
}

/** Any JSON value on one line, for settings tables. */
export function plain(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") return short(value);
  if (Array.isArray(value)) return value.length ? value.map(plain).join(", ") : "none";
  if (typeof value === "object") {
    const pairs = Object.entries(value).map(([key, entry]) => `${words(key).toLowerCase()} ${plain(entry)}`);
    return pairs.length ? pairs.join(", ") : "none";
  }
  return String(value);
}
