"use strict";

// A click on a column's heading sorts by it; another click turns the order. Gaps stay last.
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const heading = button.parentElement;
    const body = heading.closest("table").tBodies[0];
    const numeric = heading.classList.contains("number");
    const sign = heading.ariaSort === "ascending" ? -1 : 1;
    const cell = (row) => row.cells[heading.cellIndex];
    const missing = (row) => "missing" in cell(row).dataset;
    const number = (row) => Number(cell(row).dataset.value);
    const numbers = (a, b) => (number(a) > number(b)) - (number(a) < number(b)); // no difference: ∞ − ∞ is NaN
    const words = (a, b) => cell(a).textContent.localeCompare(cell(b).textContent, "en", { numeric: true });
    const order = (a, b) => sign * (numeric ? numbers(a, b) : words(a, b));
    const [gaps, rows] = [true, false].map((which) => [...body.rows].filter((row) => missing(row) === which));
    body.append(...rows.sort(order), ...gaps);
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.ariaSort = sign === 1 ? "ascending" : "descending";
  });
}

for (const input of document.querySelectorAll(".slider input")) {
  const show = () => input.parentElement.style.setProperty("--at", `${input.value}%`);
  input.addEventListener("input", show);
  show(); // a reloaded page keeps the value
}

for (const button of document.querySelectorAll(".command button")) {
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // no access to the clipboard: one key press is left to the reader
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}
