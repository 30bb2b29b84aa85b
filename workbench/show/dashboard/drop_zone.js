/*
The page side of the drop zone: it reads dropped or chosen files, whole folders too, and sends them in pieces.

Pieces, because a message of more than 10 MB ends the connection to a kernel; and each is sent once the one
before it has arrived, so that a large drop takes little memory.
*/

const PIECE = 1 << 20; // bytes of a message
const MAX_FILES = 1000;

/** @typedef {{path: string, file: File}} Dropped a file, and its path below what was dropped */

/**
 * @param {FileSystemEntry} entry of a drop
 * @returns {Promise<Dropped[]>} the file, or all files of the folder; hidden ones are left out
 */
async function filesOf(entry, found = []) {
  if (entry.name.startsWith(".") || found.length > MAX_FILES) return found;
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    found.push({ path: entry.fullPath.replace(/^\//, ""), file });
    return found;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return found;
    for (const each of some) await filesOf(each, found);
  }
}

/**
 * @param {DataTransfer} transfer
 * @returns {Promise<Dropped[]>}
 */
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ path: file.name, file }));
  const found = [];
  for (const entry of entries) await filesOf(entry, found);
  return found;
}

const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");

function render({ model, el }) {
  const zone = document.createElement("label");
  zone.className = "wb-drop";
  const input = document.createElement("input");
  input.type = "file";
  input.multiple = true;
  input.setAttribute("aria-describedby", `wb-drop-${model.model_id ?? ""}`);
  const words = document.createElement("span");
  words.id = `wb-drop-${model.model_id ?? ""}`;
  words.textContent = "Drop traces, sounds, dumps (files or a folder) or logs here, or choose files";
  const state = document.createElement("p");
  state.className = "wb-drop-state";
  state.setAttribute("role", "status");
  zone.append(input, words);
  el.append(zone, state);

  let current = ""; // identity of the transfer that runs
  let answered = null; // takes the kernel's answer to what was sent last
  const onMessage = (message) => message.transfer === current && answered?.(message);
  const ask = (message, buffers = []) =>
    new Promise((resolve) => {
      answered = resolve;
      model.send(message, undefined, buffers);
    });

  /** @param {Dropped[]} files */
  async function send(files) {
    const transfer = crypto.randomUUID?.() ?? String(Math.random());
    current = transfer;
    if (!files.length) return;
    const total = files.reduce((sum, { file }) => sum + file.size, 0);
    let sent = 0;
    const listed = files.map(({ path, file }) => [path, file.size]);
    let answer = await ask({ kind: "begin", transfer, files: listed });
    for (const [index, { file }] of files.entries()) {
      for (let start = 0; start < file.size && answer.kind === "next"; start += PIECE) {
        const piece = await file.slice(start, start + PIECE).arrayBuffer();
        if (transfer !== current) return; // a newer drop has taken its place
        answer = await ask({ kind: "piece", transfer, index, start }, [piece]);
        sent += piece.byteLength;
        state.textContent = `reading ${file.name}: ${Math.round((100 * sent) / total)} %`;
      }
    }
    if (answer.kind === "next") {
      state.textContent = "opening";
      answer = await ask({ kind: "end", transfer });
    }
    state.textContent = answer.text ?? "";
  }
  const take = (files) =>
    files.then(send).catch((error) => {
      state.textContent = `could not be read: ${error.message}`;
    });

  // A file that misses the zone is taken too: the browser would leave the page and open it instead.
  const onOver = (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    zone.classList.add("over");
  };
  const onLeave = (event) => event.relatedTarget === null && zone.classList.remove("over");
  const onDrop = (event) => {
    zone.classList.remove("over");
    if (!carriesFiles(event)) return;
    event.preventDefault();
    const surroundings = el.closest(".workbench-dashboard") ?? zone;
    if (surroundings.contains(event.target)) take(dropped(event.dataTransfer));
  };
  const onChoose = () => {
    const files = [...input.files].map((file) => ({ path: file.name, file }));
    input.value = ""; // so that the same file can be chosen again
    take(Promise.resolve(files));
  };
  model.on("msg:custom", onMessage);
  document.addEventListener("dragover", onOver);
  document.addEventListener("dragleave", onLeave);
  document.addEventListener("drop", onDrop);
  input.addEventListener("change", onChoose);
  return () => {
    model.off("msg:custom", onMessage);
    document.removeEventListener("dragover", onOver);
    document.removeEventListener("dragleave", onLeave);
    document.removeEventListener("drop", onDrop);
  };
}

export default { render };
