(() => {
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const look = (isDark) => {
    const text = isDark ? "#e6e6e6" : "#1c1c1c";
    const line = isDark ? "#3c3c3c" : "#dddddd";
    return {
      background: "transparent",
      font: "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif",
      view: { stroke: line },
      axis: { labelColor: text, titleColor: text, gridColor: line, tickColor: line, domainColor: line, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" },
      legend: { labelColor: text, titleColor: text, labelFontSize: 12, symbolOpacity: 1, symbolSize: 90 },
      text: { color: text },
    };
  };
  const draw = () => {
    for (const [name, spec] of Object.entries(specs)) {
      const place = document.getElementById("figure-" + name);
      if (!place) continue;
      vegaEmbed(place, spec, { config: look(dark.matches), actions: false, renderer: "svg", ast: true, tooltip: { theme: dark.matches ? "dark" : "light" } })
        .catch((error) => { place.textContent = "This figure could not be drawn (" + error.message + "); the tables hold its numbers."; });
    }
  };
  dark.addEventListener("change", draw);
  draw();
})();
