// Which suspects are shown, in what order, and the movement among their tiles and pages.

function isEarlier(suspect) { return !current(suspect) && Boolean(suspect.decided); }

function isOpen(suspect) { return !current(suspect) && !suspect.decided; }

const FILTERS = {open: isOpen, decided: suspect => Boolean(current(suspect)), earlier: isEarlier,
                 differ: suspect => differs(suspect) && !isEarlier(suspect),
                 sure: suspect => suspect.sure && !isEarlier(suspect), all: () => true};

function count() {
  const now = decidedNow(), other = elsewhere().length, offered = offers().size;
  const old = decidedEarlier.filter(isEarlier).length, all = suspects.length - old;
  byId("count").textContent = `${now.length} of ${all} suspects decided`
    + (other ? `, and ${other} on other pages of this run` : "")
    + (old ? `; ${old} decided earlier` : "");
  for (const kind of kinds) {
    const number = now.filter(suspect => current(suspect).decision === kind).length;
    byId("counts").querySelector(`[data-kind="${kind}"] b`).textContent = number;
    const part = byId("progress").querySelector(`[data-kind="${kind}"]`);
    part.style.width = `${100 * number / (all || 1)}%`;
  }
  // Tiles stay after a decision, but these numbers are of what is left.
  const left = shown.filter(FILTERS[byId("show").value]).length;
  for (const one of document.querySelectorAll(".page"))
    one.textContent = `page ${page + 1} of ${countPages()}, ${left} of ${samples} samples`;
  updatePairs();
  byId("progress").ariaValueMax = all;
  byId("progress").ariaValueNow = now.length;
  byId("offer").hidden = byId("use").hidden = !offered;
  byId("offer").firstChild.textContent = amount(offered, "decision of another review in this browser fits "
    + "an image here", "decisions of another review in this browser fit images here");
}

function countPages() { return Math.max(1, Math.ceil(shown.length / PAGE)); }

function update() {
  const given = byId("class").value, suggested = byId("suggested").value, sort = byId("sort").value;
  const fits = (wanted, label) => wanted === "" || label === Number(wanted);
  shown = suspects.filter(suspect => fits(given, suspect.given_label)
    && fits(suggested, suspect.suggested_label) && FILTERS[byId("show").value](suspect));
  if (sort === "twin") {
    // Identical images stand together, the most suspicious first; then near-duplicates; then the others.
    const first = new Map([...suspects].reverse().map(one => [one.image_sha256, one.rank]));
    const pair = one => Math.min(one.rank, byIndex.get(one.near_duplicate_of)?.rank ?? Infinity);
    const place = one => one.twin ? first.get(one.image_sha256)
      : one.near_duplicate_of === null ? Infinity : samples + pair(one);
    shown.sort((a, b) => place(a) < place(b) ? -1 : Number(place(a) > place(b)));
  } else if (sort === "disagreement") shown.sort((a, b) => b[sort] - a[sort]);
  else if (sort !== "rank") shown.sort((a, b) => a[sort] - b[sort]);
  page = 0;
  range = null;
  setSelected(new Set());
  byId("allPairs").hidden = given === "" && suggested === "";
  render();
  scrollTo(0, 0);
}

function refilter() {
  update();
  say(`Suspects shown: ${shown.length}`);
}

function render(focus = 0) {
  const pages = countPages();
  page = Math.min(Math.max(page, 0), pages - 1);
  main.replaceChildren(...shown.slice(page * PAGE, (page + 1) * PAGE).map(makeTile));
  if (!shown.length) main.append(element("p", decidedNow().length && !suspects.some(isOpen)
    && byId("show").value === "open"
    ? "All suspects shown here are decided: download the corrections with "
      + `"${byId("download").textContent}".`
    : "Nothing to show: choose more under Show.", {className: "line"}));
  markLikely();
  for (const one of document.querySelectorAll(".previous")) one.disabled = page === 0;
  for (const one of document.querySelectorAll(".next")) one.disabled = page === pages - 1;
  byId("all").disabled = !shown.length;
  byId("all").textContent = `Select all ${shown.length}`;
  const tile = tiles()[Math.min(focus, tiles().length - 1)];
  if (tile) makeStop(tile);
  count();
}

function tiles() { return [...main.querySelectorAll("article")]; }

// The tile where the focus is or was last.
function stopTile() { return main.querySelector("article[tabindex='0']"); }

function placeOf(tile) { return page * PAGE + tiles().indexOf(tile); }

// A line after as many suspects as have wrong labels by the estimate; the next ones fill its row.
function markLikely() {
  if (!estimated || byId("sort").value !== "rank" || !["open", "all"].includes(byId("show").value))
    return;
  const {likely, least, most} = estimated;
  const above = shown.filter(suspect => suspect.rank <= likely).length;
  const expected = amount(likely, "wrong label is", "wrong labels are");
  if (above < shown.length) tiles()[above - 1 - page * PAGE]?.after(
    element("p", `About ${expected} expected, probably ${least} to ${most}: continue below this line while `
      + "you find wrong labels.",
      {className: "line", id: "likely"}));
}

// Tab stops only at this tile and its controls.
function makeStop(tile) {
  for (const one of main.querySelectorAll("[tabindex='0']")) one.tabIndex = -1;
  for (const one of [tile, ...tile.querySelectorAll("button:not(.select), select")]) one.tabIndex = 0;
}

// Gives the focus to a suspect, by its place among those shown, in the list or in the detail view.
function goTo(place) {
  trail.length = 0;
  place = Math.min(Math.max(place, 0), shown.length - 1);
  if (place < 0) return;
  if (Math.floor(place / PAGE) !== page) {
    page = Math.floor(place / PAGE);
    render(place % PAGE);
    scrollTo(0, 0);
  }
  const tile = tiles()[place % PAGE];
  makeStop(tile);
  if (detail.open) return showDetail(shown[place]);
  tile.focus();
  // Where it does not fit between the header and the messages, its top counts.
  tile.scrollIntoView({block: "nearest"});
  const hidden = headerHeight() - tile.getBoundingClientRect().top;
  if (hidden > 0) scrollBy(0, -hidden);
}

// Gives the focus to the current tile; the page scrolls only where its picture would be out of sight.
function focusStop() {
  const tile = stopTile();
  if (!tile) return;
  tile.focus({preventScroll: true});
  const {top, bottom} = tile.querySelector(".picture").getBoundingClientRect();
  if (top < headerHeight() || bottom > innerHeight) goTo(placeOf(tile));
}

// How much of the screen the header covers.
function headerHeight() {
  const header = document.querySelector("header");
  return getComputedStyle(header).position === "sticky" ? header.offsetHeight : 0;
}

function turn(step) {
  if (page + step >= 0 && (page + step) * PAGE < shown.length) goTo((page + step) * PAGE);
}

// How many tiles it is to the tile in the same column of the next or previous row, or off the page.
function rowStep(tile, step) {
  const all = tiles(), rows = [...new Set(all.map(one => one.offsetTop))];
  const row = all.filter(one => one.offsetTop === rows[rows.indexOf(tile.offsetTop) + step]);
  const place = all.indexOf(tile);
  if (!row.length) return step < 0 ? -1 - place : all.length - place;
  return all.indexOf(row.findLast(one => one.offsetLeft <= tile.offsetLeft)) - place;
}
