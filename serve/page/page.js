// The web page: it sends one image, or several of one lesion, and shows the answer. It uses no cookie
// and no storage, so that everything is gone when the page is closed.
"use strict";

const MAX_IMAGES = 6;
const NO_MAP = "This browser cannot lay the map over this image. The PDF shows both.";
const NOT_EVERY_MAP = "This browser cannot lay a map over each of these images. The PDF shows all of them.";

const find = (id) => document.getElementById(id);
const resized = new ResizeObserver(() => placeMaps());
// Each picture has the elements that show one image, and the address of its file.
const state = { files: [], pictures: [], answer: null, key: null, turn: 0, model: null, words: null, colours: null };

function show(id, visible) { find(id).hidden = !visible; }
function capital(text) { return text.charAt(0).toUpperCase() + text.slice(1); }
function percent(value, digits = 0) { return `${(100 * value).toFixed(digits)} %`; }

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (state.key) headers.Authorization = `Bearer ${state.key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch {
    throw { status: 0, detail: "The service cannot be reached. Check the connection and try again." };
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw { status: response.status, detail: problem.detail || "The service could not answer. Try again in a moment." };
}

function post(path, files) {
  const [file] = files;
  if (files.length === 1) return ask(path, { method: "POST", body: file, headers: { "Content-Type": file.type || "application/octet-stream" } });
  const body = new FormData();
  for (const each of files) body.append("image", each, "image");  // the names of the files stay here
  return ask(path, { method: "POST", body });
}

// Names of classes and kinds of heatmap come with the model. The sentences come from words.json, which the PDF uses too.
async function learn() {
  state.words ??= await (await fetch("page/words.json")).json();
  if (!state.colours) learnColours(await (await fetch("page/map.json")).json());
  state.model = await (await ask("v1/model")).json();
  const chosen = document.querySelector("input[name=method]:checked")?.value;
  find("methods").replaceChildren(...state.model.explanations.map(({ name, title }, index) => {
    const label = document.createElement("label");
    const radio = Object.assign(document.createElement("input"), { type: "radio", name: "method", value: name });
    radio.checked = chosen ? name === chosen : index === 0;
    radio.addEventListener("change", read);
    label.append(radio, ` ${title}`);
    return label;
  }));
}

function meaningOf(method) {
  return state.model.explanations.find(({ name }) => name === method)?.meaning ?? "";
}

// The words for one image, or those for several images of one lesion.
function words() {
  const { words: alone, words: { several }, files } = state;
  return files.length === 1 ? alone : { ...alone, ...several, warnings: { ...alone.warnings, ...several.warnings } };
}

function choose(files, synthetic = false) {
  if (files.length === 0) return;
  if (files.length > MAX_IMAGES) {
    fail({ detail: `A lesion can have up to ${MAX_IMAGES} images here; these are ${files.length}. Choose fewer.` });
    return;
  }
  forget();
  Object.assign(state, { files, answer: null });
  state.pictures = files.map((file, index) => pictureOf(file, placeOf(index), synthetic));
  find("images").replaceChildren(...state.pictures.map(({ figure }) => figure));
  find("images").dataset.columns = files.length > 4 ? 3 : Math.min(files.length, 2);
  show("synthetic", synthetic);
  find("drop").classList.add("filled");
  show("shown", true);
  show("answer", false);
  show("map-tools", false);
  read();
}

// What tells an image from the others of its lesion; nothing if there is one.
function placeOf(index) { return state.files.length === 1 ? "" : `Image ${index + 1} of ${state.files.length}`; }

function pictureOf(file, place, synthetic) {
  const [figure, frame, caption] = [element("figure", ""), element("div", "frame"), element("figcaption", "hint", place)];
  const [image, canvas, address] = [new Image(), element("canvas", "map"), URL.createObjectURL(file)];
  image.alt = synthetic ? "A synthetic image" : place || "The image you chose";
  image.addEventListener("load", () => placeImage(image));
  image.src = address;
  canvas.width = 0;
  canvas.setAttribute("aria-hidden", "true");
  caption.hidden = !place;
  frame.append(image, canvas);
  figure.append(frame, caption);
  resized.observe(image);
  return { figure, image, canvas, caption, address };
}

function forget() {
  for (const { image, address } of state.pictures) {
    resized.unobserve(image);
    URL.revokeObjectURL(address);
  }
  Object.assign(state, { files: [], pictures: [], answer: null });
  find("images").replaceChildren();
}

// An old map must not be seen under the name of another method.
function clearMaps() {
  state.pictures.forEach(({ canvas, caption }, index) => {
    canvas.width = 0;
    caption.textContent = placeOf(index);
  });
  find("map-meaning").textContent = "";
}

async function read() {
  const turn = ++state.turn;
  show("problem", false);
  show("key-form", false);
  clearMaps();
  find("status").textContent = state.files.length === 1 ? "Reading the image…" : `Reading ${state.files.length} images…`;
  try {
    if (!state.model) await learn();
    if (turn !== state.turn) return;
    const method = document.querySelector("input[name=method]:checked").value;
    const answer = await (await post(`v1/predict?explain=${method}`, state.files)).json();
    if (answer.model.version !== state.model.model.version) await learn();
    if (turn !== state.turn) return;
    state.answer = answer;
    find("status").textContent = "";
    render(answer);
  } catch (error) {
    if (turn === state.turn) fail(error);
  }
}

function fail(error) {
  find("status").textContent = "";
  if (error.status === 401 || error.status === 403) {
    show("key-form", true);
    find("key").focus();
    if (error.status === 401 && !state.key) return;
  }
  find("problem").textContent = error.detail || "Something went wrong in this page. Load it again.";
  show("problem", true);
}

function render(answer) {
  const [{ task }, said, several] = [state.model, words(), answer.num_images > 1];
  const score = task.targets.reduce((sum, name) => sum + answer.probabilities[name], 0);
  find("decision").className = `decision ${answer.decision}`;
  find("verdict").textContent = said.verdicts[answer.decision];
  find("judged").textContent = several ? said.judged.replace("{num}", answer.num_images) : "";
  show("judged", several);
  const side = score >= answer.threshold ? "at or above" : "below";
  // Without a contract the threshold means nothing, and naming the side would be a decision.
  find("because").textContent = answer.decision === "cannot_assess" ? ""
    : `${capital(task.noun[0])} ${percent(score, 1)}, ${side} the threshold of ${percent(answer.threshold, 1)}.`;
  find("contract").textContent = answer.contract_sentence;
  listWarnings(answer.warnings, said.warnings);
  listProbabilities(answer);
  find("prevalence-label").textContent = `${capital(task.noun[1])} among the lesions you examine`;
  show("clinic", answer.decision !== "cannot_assess");
  explainPrevalence();
  show("answer", true);
  show("map-tools", Boolean(answer.explanation));
  if (answer.explanation) {
    find("map-meaning").textContent = `${meaningOf(answer.explanation.method)} ${said.claims[answer.explanation.lesion_claim]}`;
    for (const [end, text] of said.map_ends.entries()) find("ends").children[end].textContent = text;
    find("scale-meaning").textContent = said.map_scale;
    drawMaps([answer.explanation, ...answer.further_explanations]);
  }
  find("model").textContent =
    `Model ${answer.model.name} ${answer.model.version}; weights ${answer.model.weights_sha256.slice(0, 12)}. Request ${answer.request_id}.`;
  find("reading").focus({ preventScroll: matchMedia("(min-width: 56rem)").matches });
}

function listWarnings(codes, sentences) {
  find("warnings").replaceChildren(...codes.map((code) => {
    const item = document.createElement("li");
    item.textContent = (sentences[code] || code).replace("{noun}", state.model.task.noun[0]);
    return item;
  }));
  show("warnings", codes.length > 0);
}

function element(tag, name, text = "") {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = text;
  return made;
}

function listProbabilities(answer) {
  const { targets, names } = state.model.task;
  const rows = Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]);
  find("probabilities").replaceChildren(...rows.map(([name, value]) => {
    const item = element("li", targets.includes(name) ? "target" : "");
    const track = element("div", "track");
    const fill = element("div", "fill");
    fill.style.width = percent(value, 2).replace(" ", "");
    track.append(fill);
    item.append(element("span", "name", names[name] || name), track, element("span", "value", percent(value, 1)));
    if (targets.length === 1 && name === targets[0] && answer.decision !== "cannot_assess") {
      const mark = element("div", "mark");
      mark.style.left = percent(answer.threshold, 2).replace(" ", "");
      track.append(mark);
      item.append(element("span", "note", `The line marks the threshold, ${percent(answer.threshold, 1)}.`));
    }
    return item;
  }));
}

// The slider covers prevalences from 0.1 % to 50 % on a logarithmic scale, because most clinics
// have a low one.
function prevalence() { return 0.001 * (500 ** (find("prevalence").value / 100)); }

function explainPrevalence() {
  const share = prevalence();
  find("prevalence-value").textContent = percent(share, share < 0.1 ? 1 : 0);
  find("prevalence").setAttribute("aria-valuetext", percent(share, 1));
  if (!state.answer) return;
  const [one, many] = state.model.task.noun;
  const { status, target_sensitivity: sensitivity, specificity, target_share: mix } = state.answer.contract;
  explainShift(share, mix);
  if (status !== "met") {
    find("meaning").textContent = `Nothing is promised, so the number of missed ${many} cannot be bounded.`;
    return;
  }
  // Counts with the promised sensitivity: the one on the calibration data was put there by the threshold.
  const [sick, well] = [1000 * share, 1000 * (1 - share)];
  const [found, alarms] = [sick * sensitivity, well * (1 - specificity)];
  const [missed, cleared] = [sick - found, well - alarms];
  const whole = (value) => (value < 10 ? value.toFixed(1) : Math.round(value).toString());
  find("meaning").textContent = state.answer.decision === "refer"
    ? `Of 1000 such lesions about ${whole(found + alarms)} are referred, at least ${whole(found)} of them ${many}: a referral means ${one} in about ${percent(found / (found + alarms), 1)}.`
    : `Of 1000 such lesions about ${whole(missed + cleared)} are not referred, at most ${whole(missed)} of them ${many}: no referral still means ${one} in up to ${percent(missed / (missed + cleared), 2)}.`;
}

// The odds of a calibrated probability change with the prior odds (Saerens et al., 2002).
function explainShift(share, calibratedAt) {
  const { targets, noun } = state.model.task;
  const score = targets.reduce((sum, name) => sum + state.answer.probabilities[name], 0);
  const [target, other] = [score * share / calibratedAt, (1 - score) * (1 - share) / (1 - calibratedAt)];
  find("mix").textContent = `These probabilities are for data of which ${percent(calibratedAt, 0)} are ${noun[1]}.`;
  const subject = state.answer.num_images > 1 ? "lesion" : "image";
  find("shifted").textContent = `At this share, the probability of ${noun[0]} in this ${subject} is ${percent(target / (target + other), 1)}.`;
}

async function drawMaps(explanations) {
  const [turn, pictures] = [state.turn, state.pictures];
  const drawn = await Promise.all(explanations.map((explanation, index) => drawMap(pictures[index], explanation, turn)));
  if (turn !== state.turn) return;
  const isEmpty = explanations.map(({ peak }) => peak === 0);
  if (drawn.includes(false)) find("map-meaning").textContent = pictures.length === 1 ? NO_MAP : NOT_EVERY_MAP;
  pictures.forEach(({ caption }, index) => { if (isEmpty[index]) caption.textContent = `${placeOf(index)}: its map is empty`; });
  show("legend", drawn.some((done, index) => done && !isEmpty[index]));  // an empty map has no colours
  placeMaps();
}

// Returns whether the map lies on its image now, or the answer is out of date.
async function drawMap({ image, canvas }, { heatmap_png: encoded }, turn) {
  const heat = new Image();
  heat.src = `data:image/png;base64,${encoded}`;
  try {
    await Promise.all([heat.decode(), image.decode()]);
  } catch {
    return false;
  }
  if (turn !== state.turn) return true;
  const [theirs, ours] = [image, heat].map(({ naturalWidth, naturalHeight }) => naturalWidth / naturalHeight);
  if (Math.abs(theirs / ours - 1) > 0.05) return false;  // the browser orients the image differently
  canvas.width = heat.naturalWidth;
  canvas.height = heat.naturalHeight;
  const context = canvas.getContext("2d");
  context.drawImage(heat, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < pixels.data.length; i += 4) pixels.data.set(state.colours[pixels.data[i]], i);
  context.putImageData(pixels, 0, 0);
  return true;
}

// Red, green, blue and opacity of each value, as the overlay and the PDF have them.
function learnColours({ grounds: [skin, lesion], rgba }) {
  const bytes = rgba.match(/../g).map((text) => parseInt(text, 16));
  state.colours = Array.from({ length: 256 }, (_, value) => bytes.slice(4 * value, 4 * value + 4));
  const stops = state.colours.map(([red, green, blue, alpha]) => `rgba(${red} ${green} ${blue} / ${alpha / 255})`);
  find("scale").style.backgroundImage = `linear-gradient(to right, ${stops.join(", ")})`;
  find("grounds").style.backgroundImage = `linear-gradient(${skin} 50%, ${lesion} 50%)`;
}

function toggleMap() {
  const hidden = find("images").classList.toggle("off");
  find("hide-map").setAttribute("aria-pressed", String(hidden));
}

async function trySample() {
  const sample = await (await ask("page/sample.jpg")).blob();
  choose([new File([sample], "sample.jpg", { type: "image/jpeg" })], true);
}

// Scale an image up to its panel and most of the window's height, because it may be small.
function placeImage(image) {
  const height = state.files.length === 1 ? "70vh" : "50vh";
  image.style.width = `min(100%, calc(${height} * ${image.naturalWidth / image.naturalHeight}))`;
}

function placeMaps() {
  const opacity = find("opacity").value / 100;
  for (const { image, canvas } of state.pictures) {
    Object.assign(canvas.style, {
      left: `${image.offsetLeft}px`, top: `${image.offsetTop}px`, width: `${image.offsetWidth}px`, height: `${image.offsetHeight}px`, opacity,
    });
  }
  find("scale").style.opacity = opacity;
  find("opacity-value").textContent = `${find("opacity").value} %`;
}

async function savePdf() {
  const button = find("pdf");
  button.disabled = true;
  find("status").textContent = "Making the PDF…";
  try {
    const blob = await (await post("v1/report", state.files)).blob();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = "melanoma-triage.pdf";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    find("status").textContent = "The PDF is saved.";
  } catch (error) {
    fail(error);
  } finally {
    button.disabled = false;
  }
}

function again() {
  state.turn += 1;
  forget();
  find("drop").classList.remove("filled");
  for (const id of ["shown", "answer", "map-tools", "problem", "key-form"]) show(id, false);
  find("status").textContent = "Waiting for an image.";
  find("model").textContent = "";
  find("file").focus();
}

for (const id of ["file", "camera"]) {
  find(id).addEventListener("change", (event) => { choose([...event.target.files]); event.target.value = ""; });
}
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => { event.preventDefault(); find("drop").classList.add("over"); });
}
for (const name of ["dragleave", "drop"]) {
  document.addEventListener(name, (event) => { event.preventDefault(); find("drop").classList.remove("over"); });
}
document.addEventListener("drop", (event) => choose([...event.dataTransfer.files]));
document.addEventListener("paste", (event) => choose([...event.clipboardData.files].filter((file) => file.type.startsWith("image/"))));
find("opacity").addEventListener("input", placeMaps);
find("hide-map").addEventListener("click", toggleMap);
find("sample").addEventListener("click", () => trySample().catch(fail));
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input[type=password], input[type=text], textarea");
  if (event.key.toLowerCase() !== "m" || typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (!find("map-tools").hidden) toggleMap();
});
find("prevalence").addEventListener("input", explainPrevalence);
find("pdf").addEventListener("click", savePdf);
find("again").addEventListener("click", again);
find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.key = find("key").value.trim();
  find("key").value = "";
  read();
});
find("prevalence").value = 55;  // 3 %
explainPrevalence();
