"use strict";

const say = (text) => { document.getElementById("status").textContent = text; };

// --- sorting: numbers by their value, what has none behind all others; equal rows keep their order
const collator = new Intl.Collator("en", { numeric: true });

const keyOf = (row, place) => {
  const cell = row.cells[place];
  if (!cell.classList.contains("number")) return cell.textContent.trim();
  return cell.dataset.value === "" ? null : Number(cell.dataset.value);
};

const compare = (first, second, sign) => {
  if (first === null || second === null) return (first === null) - (second === null);
  if (typeof first === "string") return sign * collator.compare(first, second);
  return sign * ((first > second) - (first < second));
};

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = [...table.tBodies[0].rows].map((row) => [keyOf(row, place), row]);
      keyed.sort((a, b) => compare(a[0], b[0], down ? -1 : 1));
      table.tBodies[0].append(...keyed.map(([, row]) => row));
    });
  });
}

// --- filtering by words, all of which a row must have, and by result
for (const tools of document.querySelectorAll(".tools")) {
  const rows = [...document.getElementById(tools.dataset.table).tBodies[0].rows];
  const [input, select, output] = ["input", "select", "output"].map((name) => tools.querySelector(name));
  const apply = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = select.value.split(" ").filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const fits = !wanted.length || wanted.some((status) => row.classList.contains(status));
      row.hidden = !(fits && words.every((word) => text.includes(word)));
    }
    output.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
  };
  input.addEventListener("input", apply);
  select.addEventListener("change", apply);
  tools.hidden = false;
  apply();
}

// --- commands: copied, or at least selected where a page may not copy
for (const command of document.querySelectorAll(".command")) {
  const code = command.querySelector("code");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.setAttribute("aria-label", `Copy the command for ${command.dataset.what}`);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    say(`${button.textContent}: ${code.textContent}`);
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  command.append(button);
}

// --- paper has no triangles to click
const details = [...document.querySelectorAll("details")];
let opened = [];
addEventListener("beforeprint", () => {
  opened = details.filter((part) => !part.open);
  opened.forEach((part) => { part.open = true; });
});
addEventListener("afterprint", () => { opened.forEach((part) => { part.open = false; }); });
