// Draws the charts, and draws them again when the reader's device turns to dark or to light.
const { specs, light, dark } = JSON.parse(document.getElementById("charts").textContent);
const darkness = matchMedia("(prefers-color-scheme: dark)");
const drawn = new Map();
let drawing = Promise.resolve();

async function draw() {
  for (const place of document.querySelectorAll("[data-chart]")) {
    drawn.get(place)?.finalize();
    const theme = darkness.matches ? dark : light;
    const columns = Math.max(1, Math.floor(place.clientWidth / 150));
    const options = {
      config: { ...theme, legend: { ...theme.legend, columns } },
      tooltip: { theme: darkness.matches ? "dark" : "light" },
      renderer: "svg",
      actions: false,
    };
    drawn.set(place, await vegaEmbed(place, specs[place.dataset.chart], options));
  }
  document.documentElement.dataset.drawn = drawn.size;
}

function drawAgain() {
  drawing = drawing.then(draw);
}

darkness.addEventListener("change", drawAgain);
drawAgain();
