/** A folder of the visitor's as one tar. Files are referred to, not read: the browser reads them as it sends them. */

const BLOCK = 512;
const NAME_BYTES = 100;
const text = new TextEncoder();

/** files: as an input with `webkitdirectory` has them. Returns a File called after their folder. */
export function tarOf(files) {
  const parts = [...files].flatMap((file) => entry(file.webkitRelativePath, file));
  const [folder] = files[0].webkitRelativePath.split("/");
  return new File([...parts, new Uint8Array(2 * BLOCK)], `${folder}.tar`, { type: "application/x-tar" });
}

function entry(path, file) {
  const name = text.encode(path);
  const short = [header(name.subarray(0, NAME_BYTES), file.size, "0"), file, padding(file.size)];
  if (name.length <= NAME_BYTES) return short;
  return [header(text.encode("././@LongLink"), name.length, "L"), name, padding(name.length), ...short]; // as GNU tar has it
}

function header(name, size, kind) {
  const block = new Uint8Array(BLOCK);
  const put = (at, value) => block.set(text.encode(value), at);
  block.set(name);
  put(100, "0000644\0" + "0000000\0".repeat(2));
  put(124, `${size.toString(8).padStart(11, "0")}\0${"0".repeat(11)}\0`);
  put(148, `${" ".repeat(8)}${kind}`);
  put(257, "ustar\x0000");
  const sum = block.reduce((total, byte) => total + byte, 0);
  put(148, `${sum.toString(8).padStart(6, "0")}\0 `);
  return block;
}

function padding(size) {
  return new Uint8Array((BLOCK - (size % BLOCK)) % BLOCK);
}
