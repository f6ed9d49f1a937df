"use strict";
const by = id => document.getElementById(id);
const element = (tag, text, parent) => { const made = document.createElement(tag); made.textContent = text; parent?.append(made); return made; };
const WORDS = {compute: "computed", reuse: "reused", dynamic: "decided by data"};
const STARTED = "policy mine {\n  # Computes two steps, then reuses every other one.\n  param every = 2 in 1..10\n\n  phase warmup for 2 steps { compute }\n" +
  "  phase rest               { compute every every steps }\n\n  layers blocks[*] { keep residual }\n}\n";
let values = {}, latest = 0, timer = 0, shown = 0, runs = [], asked = new Set(), polling = 0;

async function ask(path, body) {
  const given = body === undefined ? {} : {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body)};
  let answer;
  try { answer = await fetch(path, given); } catch { throw new Error("The server does not answer. Is `mccompile serve` still running?"); }
  const kind = answer.headers.get("Content-Type") || "";
  if (!kind.includes("json")) throw new Error((await answer.text()).trim() || `The server answers with status ${answer.status}.`);
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error.text);
  return found;
}
const order = () => ({name: by("name").value, text: by("text").value, preset: by("preset").value, values});

function drawLines() {
  const count = by("text").value.split("\n").length;
  by("lines").textContent = Array.from({length: count}, (_, i) => i + 1).join("\n") + "\n\n";
}
function scrolled() { by("lines").scrollTop = by("marks").scrollTop = by("text").scrollTop; by("marks").scrollLeft = by("text").scrollLeft; }
function drawMarks(problems) {
  const text = by("text").value, sheet = by("marks");
  sheet.replaceChildren();
  const places = problems.map(p => p.place).filter(Boolean).sort((a, b) => a.start - b.start);
  let at = 0;
  for (const place of places) {
    if (place.start < at) continue;
    sheet.append(text.slice(at, place.start));
    at = Math.max(place.end, place.start);
    element("mark", text.slice(place.start, at) || " ", sheet);
  }
  sheet.append(text.slice(at) + "\n\n");
  scrolled();
}
function drawProblems(problems) {
  const list = by("problems"), text = by("text");
  list.replaceChildren();
  for (const problem of problems) {
    const item = element("li", "", list), button = element("button", `${problem.place ? `line ${problem.place.line}: ` : ""}${problem.message}`, item);
    button.type = "button";
    if (problem.place) button.addEventListener("click", () => { text.focus(); text.setSelectionRange(problem.place.start, problem.place.end); });
    element("pre", problem.text.trimEnd(), item);
    const page = element("a", `what ${problem.code} means`, item);
    page.href = `/errors/${problem.code}`; page.target = "_blank"; page.rel = "noopener";
  }
  by("verdict").textContent = problems.length ? `${problems.length} error${problems.length > 1 ? "s" : ""}` : "no error";
  by("verdict").classList.toggle("wrong", problems.length > 0);
  text.setAttribute("aria-invalid", problems.length > 0);
  drawMarks(problems);
}
function drawPlan(found) {
  const plan = by("plan"), list = by("stretches");
  if (found.problems.length) { plan.classList.add("soft"); by("plan-said").textContent = "There is no plan while the policy has errors."; plan.replaceChildren(); list.replaceChildren(); return; }
  plan.replaceChildren(); list.replaceChildren();
  const counts = {compute: 0, reuse: 0, dynamic: 0};
  for (const part of found.stretches) {
    const where = (part.phase ? `, phase ${part.phase}` : "") + (part.region ? `, regions ${part.region}` : "");
    counts[part.action] += part.last - part.first + 1;
    for (let step = part.first; step <= part.last; step++) {
      const cell = element("i", "", plan);
      cell.className = part.action; cell.title = `step ${step}: ${WORDS[part.action]}${where}`;
    }
    const steps = part.first === part.last ? `step ${part.first}` : `steps ${part.first} to ${part.last}`;
    element("li", `${steps}: ${WORDS[part.action]}${where}`, list);
  }
  for (const note of found.notes) element("li", note, list);
  const all = found.stretches.some(part => part.region) ? ", over all regions" : "";
  by("plan-said").textContent = `${found.policy}, ${found.steps} steps of a chunk${all}: ${counts.compute} computed, ${counts.reuse} reused, ${counts.dynamic} decided by data.`;
}
function drawKnobs(knobs, choices) {
  const place = by("knobs"), drawn = JSON.stringify([knobs, choices]);
  by("knobs-head").hidden = !(knobs.length + choices.length);
  if (place.dataset.drawn === drawn) return;
  place.dataset.drawn = drawn;
  place.replaceChildren();
  for (const choice of choices) {
    const label = element("label", choice.name, place), field = document.createElement("select");
    label.htmlFor = field.id = `knob-${choice.name}`;
    choice.words.forEach(word => element("option", word, field));
    field.value = values[choice.name] ?? choice.words[0];
    field.addEventListener("change", () => { if (field.value !== choice.words[0]) values[choice.name] = field.value; else delete values[choice.name]; check(); });
    place.append(field);
    element("span", "a choice", place).className = "soft";
  }
  for (const knob of knobs) {
    const label = element("label", knob.name, place), field = document.createElement("input");
    label.htmlFor = field.id = `knob-${knob.name}`;
    field.type = "number"; field.min = knob.low; field.max = knob.high; field.step = knob.whole ? 1 : "any"; field.value = values[knob.name] ?? knob.default;
    field.addEventListener("input", () => {
      const value = field.valueAsNumber;
      if (Number.isFinite(value) && value !== knob.default) values[knob.name] = value; else delete values[knob.name];
      later();
    });
    place.append(field);
    element("span", `${knob.low} to ${knob.high}${knob.unit ? ` ${knob.unit}` : ""}`, place).className = "soft";
  }
}
async function check() {
  const mine = ++latest;
  try {
    const found = await ask("/api/check", order());
    if (mine !== latest) return;
    const gone = Object.keys(values).filter(name => ![...found.knobs, ...found.choices].some(k => k.name === name)), settled = found.knobs.length || !found.problems.length;
    if (gone.length && settled) {
      gone.forEach(name => delete values[name]); check(); return;
    }
    drawProblems(found.problems); drawPlan(found); if (settled) drawKnobs(found.knobs, found.choices);
  } catch (error) {
    if (mine !== latest) return;
    by("verdict").textContent = error.message; by("verdict").classList.add("wrong");
  }
  document.body.dataset.checked = by("text").value;
}
function later() { clearTimeout(timer); timer = setTimeout(check, 150); }
function edited() { drawLines(); drawMarks([]); later(); keep(); }
function keep() { sessionStorage.setItem("policy", JSON.stringify({name: by("name").value, text: by("text").value})); }

async function open_(value) {
  const [of, name] = value.split("/");
  try {
    const found = await ask(`/api/policy?of=${of}&name=${encodeURIComponent(name)}`);
    by("text").value = found.text; by("name").value = of === "saved" ? name : `my_${name}`; values = {};
    by("saved-said").textContent = `opened ${name}`; edited();
  } catch (error) { by("saved-said").textContent = error.message; }
}
async function save(over) {
  by("save-over").hidden = true;
  try {
    const found = await ask("/api/save", {name: by("name").value, text: by("text").value, over});
    by("saved-said").textContent = `saved ${found.saved}`;
    const names = (await ask("/api/policies")).saved;
    by("saved").replaceChildren(...names.map(name => { const option = element("option", name); option.value = `saved/${name}`; return option; }));
  } catch (error) {
    by("saved-said").textContent = error.message;
    by("save-over").hidden = !error.message.includes("is there already");
  }
}

async function run() {
  by("refused").textContent = "";
  const prompt = by("prompt").value, seed = Number(by("seed").value);
  try { const made = await ask("/api/runs", {...order(), prompt, seed}); asked.add(made.number); await poll(); }
  catch (error) { by("refused").textContent = error.message; }
}
const decibel = value => value === null ? "equal" : value.toFixed(1);
function saidOf(run) {
  if (run.state === "waiting") return run.before ? `waiting, ${run.before} before it` : "waiting";
  if (run.state === "running") return run.stopping ? "stopping" : `${run.progress.doing}${run.progress.total ? ` ${run.progress.done}/${run.progress.total}` : ""}`;
  return run.state;
}
function drawRuns() {
  const body = by("runs").tBodies[0], focused = document.activeElement?.id;
  body.replaceChildren();
  for (const run of runs) {
    const row = body.insertRow(), done = run.outcome, cells = [run.number, run.name.replace(/\.policy$/, "") + Object.entries(run.values).map(([n, v]) => ` ${n}=${v}`).join(""), run.preset.split(":")[0], saidOf(run)];
    cells.push(...(done ? [`${(done.vanilla_seconds / done.seconds).toFixed(2)}x`, `${(100 * done.tokens).toFixed(1)}%`, `${(100 * done.flops).toFixed(1)}%`, decibel(done.psnr), `${decibel(done.worst)} (${done.worst_frame})`] : ["", "", "", "", ""]));
    cells.forEach(cell => element("td", cell, row));
    const actions = row.insertCell(), act = (name, what) => { const button = element("button", name, actions); button.type = "button"; button.id = `${name}-${run.number}`; button.setAttribute("aria-label", `${name} run ${run.number}`); button.addEventListener("click", what); return button; };
    if (run.state === "done") act("Show", () => show(run, true));
    if (run.state === "failed") act("Why", () => { by("refused").textContent = run.problems.map(p => p.text.trimEnd()).join("\n\n"); });
    if (run.state === "waiting" || run.state === "running") act("Cancel", () => ask(`/api/runs/${run.number}/cancel`, {}).then(poll, error => { by("refused").textContent = error.message; })).disabled = run.stopping;
  }
  if (focused && document.activeElement === document.body) by(focused)?.focus();
}
function drawNow() {
  const now = runs.find(r => r.state === "running"), last = runs.find(r => !["waiting", "running"].includes(r.state)), waiting = runs.filter(r => r.state === "waiting").length;
  const rest = waiting ? `; ${waiting} waiting` : "";
  const said = now ? `Run ${now.number}: ${now.stopping ? "stopping" : now.progress.doing}${rest}` : waiting ? `${waiting} waiting` : last ? `Run ${last.number} ${last.state === "done" ? "is done" : last.state === "failed" ? "failed" : "was cancelled"}` : "Nothing has run yet.";
  if (by("now").textContent !== said) by("now").textContent = said;  // a screen reader reads each change, and no step
  by("progress").hidden = !now;
  if (now?.progress.total) by("progress").value = now.progress.done / now.progress.total; else by("progress").removeAttribute("value");
}
async function poll() {
  clearTimeout(polling);
  try {
    const found = await ask("/api/runs");
    const changed = JSON.stringify(found) !== JSON.stringify(runs);
    runs = found;
    if (changed) { drawRuns(); drawNow(); }
    for (const run of runs) if (asked.has(run.number) && !["waiting", "running"].includes(run.state)) {
      asked.delete(run.number);
      if (run.state === "done") show(run, false);
      if (run.state === "failed") by("refused").textContent = run.problems.map(p => p.text.trimEnd()).join("\n\n");
    }
    if (runs.some(r => ["waiting", "running"].includes(r.state))) polling = setTimeout(poll, 400);
  } catch (error) { by("now").textContent = error.message; polling = setTimeout(poll, 3000); }
}
function show(run, focus) {
  const done = run.outcome, at = `/runs/${run.number}`;
  shown = run.number; by("result").hidden = false;
  by("result-head").textContent = `Result of run ${run.number}: ${run.name.replace(/\.policy$/, "")}`;
  by("result-said").textContent = `${done.said}. ${done.seconds.toFixed(2)} s in place of vanilla's ${done.vanilla_seconds.toFixed(2)} s; ${(100 * done.flops).toFixed(1)}% of the FLOPs; ${done.psnr === null ? "the videos are equal" : `PSNR ${decibel(done.psnr)} dB, worst frame ${done.worst_frame} with ${decibel(done.worst)} dB`}. Prompt: ${run.prompt}`;
  by("warnings").replaceChildren(...done.refusals.map(r => element("li", `refused ${r}`)), ...done.warnings.map(w => element("li", w)));
  by("video").src = `${at}/side_by_side.mp4`; by("video").setAttribute("aria-label", `Run ${run.number}: vanilla on the left, the policy on the right`);
  by("video-alone").href = `${at}/policy.mp4`; by("report-alone").href = by("report").src = `${at}/report.html`;
  by("video").play().catch(() => {});  // a browser may want a click first
  if (focus) by("result-head").focus();
}

by("text").addEventListener("input", edited);
by("text").addEventListener("scroll", scrolled);
by("name").addEventListener("input", () => { later(); keep(); });
by("preset").addEventListener("change", check);
by("open").addEventListener("change", event => { if (event.target.value) open_(event.target.value); event.target.value = ""; });
by("save").addEventListener("click", () => save(false));
by("save-over").addEventListener("click", () => save(true));
by("form").addEventListener("submit", event => { event.preventDefault(); run(); });
document.addEventListener("keydown", event => {
  if (!(event.ctrlKey || event.metaKey)) return;
  if (event.key === "Enter") { event.preventDefault(); run(); }
  if (event.key === "s") { event.preventDefault(); save(false); }
});
const kept = JSON.parse(sessionStorage.getItem("policy") || "null");
by("text").value = kept?.text ?? STARTED; by("name").value = kept?.name ?? "mine"; by("prompt").value = document.body.dataset.prompt;
drawLines(); check(); poll();
