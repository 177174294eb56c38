// @ts-check
/** Ways in: photos that are picked, dropped anywhere on the page, or pasted. */

/**
 * @param {HTMLInputElement} picker
 * @param {HTMLElement} veil - shown while photos hover over the page
 * @param {(files: File[]) => void} onFiles
 */
export function watchIntake(picker, veil, onFiles) {
  picker.addEventListener("change", () => {
    onFiles([...(picker.files ?? [])]);
    picker.value = ""; // so that the same photo can be picked again
  });
  document.addEventListener("paste", ({ clipboardData }) => onFiles([...(clipboardData?.files ?? [])]));

  /** @param {DragEvent} event */
  const bringsFiles = (event) => event.dataTransfer?.types.includes("Files") ?? false;
  document.addEventListener("dragover", (event) => {
    if (!bringsFiles(event)) return;
    event.preventDefault();
    veil.hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) veil.hidden = true; // out of the window
  });
  document.addEventListener("drop", async (event) => {
    veil.hidden = true;
    if (!bringsFiles(event)) return;
    event.preventDefault();
    onFiles(await droppedFiles(/** @type {DataTransfer} */ (event.dataTransfer)));
  });
}

const NO_PHOTO = /^(\.|desktop\.ini$|thumbs\.db$)/i;

/** @param {DataTransfer} transfer @returns {Promise<File[]>} those of dropped folders too */
async function droppedFiles(transfer) {
  const files = [...transfer.files];
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()); // all before the first await
  if (!entries.some((entry) => entry?.isDirectory)) return files;
  const found = await Promise.all(entries.map((entry) => (entry ? photosOf(entry) : [])));
  return found.flat();
}

/** A file; of a folder what may be photos, or all files if none may be one. @param {FileSystemEntry} entry */
async function photosOf(entry) {
  const all = await filesBelow(entry), photos = all.filter(mayBePhoto);
  return entry.isDirectory && photos.length ? photos : all;
}

/** Browsers do not know every type of photo. @param {File} file */
function mayBePhoto({ name, type }) {
  return !NO_PHOTO.test(name) && (!type || type.startsWith("image/"));
}

/** @param {FileSystemEntry} entry @returns {Promise<File[]>} */
async function filesBelow(entry) {
  if (entry.isFile) {
    const file = /** @type {FileSystemFileEntry} */ (entry);
    return new Promise((resolve) => file.file((found) => resolve([found]), () => resolve([]))); // gone, or locked
  }
  const reader = /** @type {FileSystemDirectoryEntry} */ (entry).createReader(), children = [], files = [];
  for (;;) {
    /** @type {FileSystemEntry[]} */
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // 100 at most
    if (!some.length) break;
    children.push(...some);
  }
  children.sort((one, other) => one.name.localeCompare(other.name, undefined, { numeric: true }));
  for (const child of children) files.push(...(await filesBelow(child)));
  return files;
}
