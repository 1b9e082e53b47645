// What keys, buttons and other tabs do, and the start of the page.

const DECISIONS = {a: "accept", f: "fine", r: "remove", u: "undo"};

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  const focused = document.activeElement;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (["SELECT", "INPUT"].includes(focused.tagName) && focused.type !== "checkbox") return;
  const anywhere = {n: () => turn(1), p: () => turn(-1), z: undoLast, "?": () => openDialog(help),
                    ...detail.open ? {} : {e: () => byId("all").click(), Escape: dismiss}};
  const tile = detail.open ? stopTile() : focused.closest("article") ?? stopTile();
  if (anywhere[key]) anywhere[key]();
  else if (!tile || !(detail.open ? inDetail : inList)(key, event, tile)) return;
  event.preventDefault();
});

// Ends the selection; where there is none, hides the message.
function dismiss() {
  if (selected.size) byId("clear").click();
  else byId("toast").classList.remove("on");
}

function inDetail(key, event, tile) {
  const step = {ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1}[key];
  if (step) goTo(placeOf(tile) + step);
  else if (key in DECISIONS) decide([viewed()], DECISIONS[key]);
  else if (key === "b" && trail.length) goBack();
  else if (key === "c") byId("view").querySelector("select").focus();
  else return false;
  return true;
}

function inList(key, event, tile) {
  // Letters are about the current tile wherever the focus is; other keys belong to the control there.
  const elsewhere = document.activeElement !== document.body && !tile.contains(document.activeElement);
  if (elsewhere ? key in DECISIONS : document.activeElement === document.body) tile.focus();
  const suspect = shown[placeOf(tile)], onTile = document.activeElement === tile;
  const steps = {ArrowLeft: () => -1, ArrowRight: () => 1, ArrowUp: () => rowStep(tile, -1),
                 ArrowDown: () => rowStep(tile, 1)};
  if (key in steps && !elsewhere) {
    const place = placeOf(tile);
    if (!event.shiftKey) range = null;
    goTo(place + steps[key]());
    if (event.shiftKey) extend(place, placeOf(stopTile()));
  } else if (key in DECISIONS) decide(affected(suspect), DECISIONS[key]);
  else if (key === "c" && affected(suspect).length > 1) batchChooser.focus();
  else if (key === "c") tile.querySelector("select").focus();
  else if (key === "Enter" && onTile) openDetail(suspect);
  else if (key === " " && onTile) toggle(suspect);
  else return false;
  return true;
}

byId("download").onclick = () => {
  load();
  const rows = rowsToSave();
  if (!rows.length) return say("No decisions to download yet.");
  const link = element("a", "", {download,
    href: URL.createObjectURL(new Blob([corrections(rows)], {type: "text/csv"}))});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  const saved = amount(rows.length, "decision is saved", "decisions are saved");
  if (nextCommand) say(`${saved} in ${download}.  Train on the corrected set: `, {command: nextCommand});
  else say(`${saved} in ${download}.`);
};

byId("load").onclick = () => byId("file").click();
byId("file").onchange = async () => {
  const [chosenFile] = byId("file").files;
  if (!chosenFile) return;
  try {
    if (chosenFile.size > 1e8) throw new Error("too large");
    const decoder = new TextDecoder("utf-8", {fatal: true});
    const rows = readRows(decoder.decode(await chosenFile.arrayBuffer()));
    if (!rows) throw new Error("other columns");
    load();
    loadRows(rows);
  } catch (error) {
    say(`Expected corrections of a review page, a CSV in UTF-8 with commas, found `
      + `${chosenFile.name} (${error.message}); choose another file.`);
  }
  byId("file").value = "";
};
byId("use").onclick = () => {
  load();
  const taken = new Map([...offers()].map(([suspect, row]) => [suspect.index, row])), kept = keep(taken);
  undoable.length = 0;
  update();
  stopTile()?.focus();
  say(amount(taken.size, "decision is taken over", "decisions are taken over") + (kept ? "" : UNKEPT));
};
for (const one of document.querySelectorAll(".filters select")) {
  let browsing = false;  // keys change a closed chooser one by one: it keeps the focus until Enter
  one.onkeydown = event => {
    if (browsing && event.key === "Enter") focusStop();
    browsing = !["Enter", "Tab", "Escape"].includes(event.key);
  };
  one.onpointerdown = () => { browsing = false; };
  one.onchange = () => {
    refilter();
    if (!browsing) focusStop();
  };
}
for (const [name, step] of [["previous", -1], ["next", 1]])
  for (const one of document.querySelectorAll("." + name)) one.onclick = () => turn(step);
main.addEventListener("focusin", event => makeStop(event.target.closest("article")));
new ResizeObserver(() => {
  markWider();
  document.documentElement.style.setProperty("--header", headerHeight() + "px");
}).observe(document.querySelector("header"));
addEventListener("storage", event => {  // from another tab
  if (!event.key?.startsWith(PREFIX)) return;
  unkept.delete(event.key);
  take(event.key, event.newValue);
  settle();
  const changed = suspects.filter(suspect => runKey(suspect.index) === event.key);
  for (const before of undoable) for (const {index} of changed) before.delete(index);  // theirs is newer
  refresh(changed);
});
byId("moves").onchange = () => {
  try { localStorage.setItem(MOVES, byId("moves").checked); } catch {}
};
try { byId("moves").checked = localStorage.getItem(MOVES) !== "false"; } catch {}

// A phone has no room for all of the header.
const narrow = matchMedia("(max-width: 40em)"), fold = () => { byId("filters").open = !narrow.matches; };
narrow.onchange = fold;
fold();

history.scrollRestoration = "manual";  // what a key decides is in sight
load();
update();
const start = Math.max(0, shown.findIndex(isOpen));
page = Math.floor(start / PAGE);
render(start % PAGE);
focusStop();
