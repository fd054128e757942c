//! Figures as bars: plain text for a terminal, and an SVG that can be read in light and dark.
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use std::fmt::Write;

/// The longest bar, in characters and in pixels.
const TEXT_BAR: f64 = 40.0;
const SVG_BAR: f64 = 420.0;
/// Of the SVG, in pixels: its width, a line, and where bars begin.
const WIDTH: usize = 760;
const LINE: usize = 20;
const BARS_AT: usize = 190;
/// By the reader's colour scheme: the ground, the text, our bars and those of the others.
const STYLE: &str = "svg{background:#fff;font:13px system-ui,sans-serif}text{fill:#1f2328}.what{font-weight:600}\
    .ours{fill:#0969da}.other{fill:#8c959f}\
    @media(prefers-color-scheme:dark){svg{background:#0d1117}text{fill:#e6edf3}.ours{fill:#58a6ff}.other{fill:#6e7681}}";

/// One measure of all contenders, in their order.
pub struct Row {
    pub what: &'static str,
    /// More is better; else less is.
    pub more: bool,
    pub figures: Vec<f64>,
}

impl Row {
    pub fn title(&self) -> String {
        format!("{} ({} is better)", self.what, if self.more { "more" } else { "less" })
    }

    /// From 0 to 1: how long the bar of a figure is.
    fn part(&self, figure: f64) -> f64 {
        let most = self.figures.iter().copied().fold(0.0, f64::max);
        if most > 0.0 { figure / most } else { 0.0 }
    }
}

pub fn shown(figure: f64) -> String {
    if figure < 10.0 { format!("{figure:.2}") } else { format!("{figure:.0}") }
}

pub fn bars(names: &[&str], rows: &[Row]) -> String {
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for row in rows {
        let _ = writeln!(text, "{}", row.title());
        for (name, figure) in names.iter().zip(&row.figures) {
            let bar = "#".repeat((row.part(*figure) * TEXT_BAR).round() as usize);
            let _ = writeln!(text, "  {name:width$}  {bar} {}", shown(*figure));
        }
        text.push('\n');
    }
    text
}

/// Bars whose name begins with `ours` stand out.
pub fn svg(names: &[&str], rows: &[Row], ours: &str) -> String {
    let mut body = String::new();
    let mut at = 0;
    for row in rows {
        at += LINE + LINE / 2;
        let _ = writeln!(body, "<text class=\"what\" x=\"10\" y=\"{at}\">{}</text>", row.title());
        for (name, figure) in names.iter().zip(&row.figures) {
            at += LINE;
            let class = if name.starts_with(ours) { "ours" } else { "other" };
            let (long, top) = ((row.part(*figure) * SVG_BAR).max(1.0), at - 12);
            let end = BARS_AT as f64 + long + 8.0;
            let _ = writeln!(
                body,
                "<text x=\"{}\" y=\"{at}\" text-anchor=\"end\">{name}</text>\
                 <rect class=\"{class}\" x=\"{BARS_AT}\" y=\"{top}\" width=\"{long:.1}\" height=\"14\" rx=\"2\"/>\
                 <text x=\"{end:.1}\" y=\"{at}\">{}</text>",
                BARS_AT - 8,
                shown(*figure)
            );
        }
    }
    let height = at + LINE;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n<title>connect and its peers</title>\n\
         <style>{STYLE}</style>\n{body}</svg>\n"
    )
}
