// What speaks for and against the label of a suspect, where the run has explanations, and the way to those
// of these images that are suspects, and back.

const trail = [];  // the suspects on the way to the one in the detail view; that of the list is the first

function sampleAt(index) { return byIndex.get(index) ?? {index, ...others[index]}; }

function makeReasons(suspect) {
  const {reasons, near_duplicate_of: near} = suspect, found = near === null ? [] : [makeImages([near])];
  if (!reasons) return explained ? [...found, element("p", "What speaks for and against this label was "
    + "not computed: calculate_score.py --explain takes the first by tracin; give it a larger number.",
    {className: "small"})] : found;
  const {opponents, proponents} = reasons;
  return [...found,
    makeGroup("Against this label", opponents, "Training images whose gradients pull the other way.",
      makeVote(reasons)),
    makeGroup("For this label", proponents, "Nearly all carry the given label: they show what it rests on, "
      + "not whether it is right.")];
}

function makeGroup(title, indices, told, ...more) {
  const group = element("div", "", {className: "reasons"});
  group.append(element("h3", title));
  if (indices.length) group.append(element("p", told, {className: "small"}), ...more, makeImages(indices));
  else group.append(element("p", "There are none.", {className: "small"}));
  return group;
}

function makeImages(indices) {
  const list = element("ul", "", {className: "images"});
  list.append(...indices.map(makeImage));
  return list;
}

function makeVote({opponents, vote, votes}) {
  const all = opponents.length;
  return named(all === 1 ? "The only one is labelled " : `${votes} of the ${all} strongest against it `
    + `${votes === 1 ? "is" : "are"} labelled `, names[vote], "", {className: "vote"});
}

// One of these images, with its label; a suspect is a button that leads to it.
function makeImage(index) {
  const sample = sampleAt(index), suspect = byIndex.get(index), item = element("li", "");
  const label = names[sample.given_label], title = `${file(sample)}, labelled ${label}`;
  const box = element(suspect ? "button" : "span", "", {className: "image", title});
  box.append(makePicture(sample, suspect ? "" : file(sample)), element("bdi", label));
  if (suspect) {
    const state = describe(suspect);
    box.append(element("small", `#${suspect.rank}` + (state === "undecided" ? "" : `, ${state}`)));
    box.ariaLabel = `Suspect ${suspect.rank}, labelled ${label}, ${state}: show it`;
    box.dataset.leads = index;
    box.onclick = () => visit(suspect);
  }
  item.append(box);
  return item;
}

function visit(suspect) {
  trail.push(viewed());
  showDetail(suspect);
}

function goBack() {
  const {index} = viewed();
  showDetail(trail.pop());
  byId("view").querySelector(`[data-leads="${index}"]`)?.focus();
}

byId("back").onclick = goBack;
