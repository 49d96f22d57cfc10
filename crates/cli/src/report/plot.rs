//! Plots as inline SVG. Colours are variables of the page's style sheet.

use super::text::{escaped, figure, shortened};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 74.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 46.0;
const WIDEST_BAR: f64 = 90.0;

/// A bar of two parts: the first is filled strongly, the second weakly.
#[derive(Debug, Clone)]
pub(super) struct Bar {
    pub label: String,
    /// Shown when the pointer is on the bar.
    pub title: String,
    pub parts: [f64; 2],
}

/// A line of a plot.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// The names of a plot's axes, with units.
#[derive(Debug, Clone, Copy)]
pub(super) struct Labels<'a> {
    /// What the plot shows, for readers who cannot see it.
    pub title: &'a str,
    pub x: &'a str,
    pub y: &'a str,
}

/// A vertical axis.
#[derive(Debug, Clone, Copy)]
struct Scale {
    min: f64,
    max: f64,
    log: bool,
}

impl Scale {
    /// From 0 to a round number at or above all `values`, in whole steps if all values are whole.
    fn from_zero(values: impl Iterator<Item = f64> + Clone) -> Self {
        let max = values.clone().fold(0.0, f64::max);
        let max = if values.clone().all(|value| value.fract() == 0.0) { max.max(5.0) } else { max };
        let step = step(max);
        Self { min: 0.0, max: (max / step).ceil().max(1.0) * step, log: false }
    }

    /// Whole decades around positive numbers.
    fn decades(values: impl Iterator<Item = f64> + Clone) -> Self {
        let values = values.filter(|value| *value > 0.0 && value.is_finite());
        let min = values.clone().fold(f64::INFINITY, f64::min);
        let max = values.fold(0.0, f64::max);
        let (min, max) = if max > 0.0 { (min, max) } else { (1.0, 10.0) };
        let (low, high) = (min.log10().floor(), max.log10().ceil());
        Self { min: 10f64.powf(low), max: 10f64.powf(high.max(low + 1.0)), log: true }
    }

    fn ticks(&self) -> Vec<f64> {
        if self.log {
            const MOST: usize = 8;
            let (low, high) = (self.min.log10().round() as i32, self.max.log10().round() as i32);
            let every = ((high - low).unsigned_abs() as usize).div_ceil(MOST).max(1);
            return (low..=high).step_by(every).map(|decade| 10f64.powi(decade)).collect();
        }
        let step = step(self.max);
        (0..=(self.max / step).round() as i32).map(|number| f64::from(number) * step).collect()
    }

    fn y(&self, value: f64) -> f64 {
        let share = if self.log {
            (value.max(self.min).log10() - self.min.log10()) / (self.max.log10() - self.min.log10())
        } else {
            (value - self.min) / (self.max - self.min)
        };
        HEIGHT - BOTTOM - share.clamp(0.0, 1.0) * (HEIGHT - TOP - BOTTOM)
    }
}

/// A step of 1, 2 or 5 times a power of ten that divides `max` into at most five parts.
fn step(max: f64) -> f64 {
    let max = if max > 0.0 && max.is_finite() { max } else { 1.0 };
    let power = 10f64.powf((max / 5.0).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| max / step <= 5.0).unwrap_or(max)
}

fn svg(height: f64, title: &str, content: &str) -> String {
    let title = escaped(title);
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\" \
         xmlns=\"http://www.w3.org/2000/svg\">\n{content}</svg>\n"
    )
}

/// Grid lines, ticks and names of both axes.
fn axes(scale: &Scale, labels: Labels<'_>) -> String {
    let mut out = String::new();
    for tick in scale.ticks() {
        let y = scale.y(tick);
        out += &format!(
            "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\"/><text class=\"tick end\" \
             x=\"{:.1}\" y=\"{:.1}\">{}</text>\n",
            WIDTH - RIGHT,
            LEFT - 7.0,
            y + 4.0,
            figure(tick)
        );
    }
    let (middle, bottom) = ((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - BOTTOM);
    out += &format!(
        "<line class=\"axis\" x1=\"{LEFT}\" y1=\"{bottom}\" x2=\"{:.1}\" y2=\"{bottom}\"/>\n<text class=\"label \
         middle\" x=\"{middle}\" y=\"{:.1}\">{}</text>\n<text class=\"label middle\" transform=\"translate(14 {:.1}) \
         rotate(-90)\">{}</text>\n",
        WIDTH - RIGHT,
        HEIGHT - 8.0,
        escaped(labels.x),
        (TOP + bottom) / 2.0,
        escaped(labels.y)
    );
    out
}

/// Vertical bars.
pub(super) fn bars(bars: &[Bar], labels: Labels<'_>) -> String {
    let scale = Scale::from_zero(bars.iter().map(|bar| bar.parts.iter().sum()));
    let pitch = (WIDTH - LEFT - RIGHT) / bars.len().max(1) as f64;
    let width = (pitch - (pitch * 0.15).min(3.0)).min(WIDEST_BAR);
    let mut out = axes(&scale, labels);
    // A label takes about seven units for each character.
    let widest = bars.iter().map(|bar| bar.label.chars().count()).max().unwrap_or(0) as f64 * 7.0 + 10.0;
    let every = ((widest / pitch).ceil() as usize).max(1);
    for (position, bar) in bars.iter().enumerate() {
        let x = LEFT + position as f64 * pitch;
        let mut below = 0.0;
        out += &format!("<g><title>{}</title>", escaped(&bar.title));
        for (part, class) in bar.parts.iter().zip(["strong", "weak"]) {
            let (top, bottom) = (scale.y(below + part), scale.y(below));
            if *part > 0.0 {
                out += &format!(
                    "<rect class=\"{class}\" x=\"{:.2}\" y=\"{top:.2}\" width=\"{:.2}\" height=\"{:.2}\"/>",
                    x + (pitch - width) / 2.0,
                    width,
                    (bottom - top).max(0.5)
                );
            }
            below += part;
        }
        if position.is_multiple_of(every) {
            out += &format!(
                "<text class=\"tick middle\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                x + pitch / 2.0,
                HEIGHT - BOTTOM + 16.0,
                escaped(&bar.label)
            );
        }
        out += "</g>\n";
    }
    svg(HEIGHT, labels.title, &out)
}

/// Horizontal bars with their names, the longest first. `unit` follows each number.
pub(super) fn named_bars(bars: &[Bar], title: &str, unit: &str) -> String {
    const NAMES: f64 = 300.0;
    const ROW: f64 = 22.0;
    let longest = bars.iter().map(|bar| bar.parts.iter().sum()).fold(f64::MIN_POSITIVE, f64::max);
    let mut out = String::new();
    for (position, bar) in bars.iter().enumerate() {
        let (y, number) = (position as f64 * ROW, bar.parts.iter().sum::<f64>());
        let width = number / longest * (WIDTH - NAMES - 190.0);
        out += &format!(
            "<g><title>{}</title><text class=\"tick end\" x=\"{:.1}\" y=\"{:.1}\">{}</text><rect class=\"strong\" \
             x=\"{NAMES}\" y=\"{:.1}\" width=\"{:.2}\" height=\"{:.1}\"/><text class=\"tick\" x=\"{:.1}\" \
             y=\"{:.1}\">{} {}</text></g>\n",
            escaped(&bar.title),
            NAMES - 8.0,
            y + 15.0,
            escaped(&shortened(&bar.label, 42)),
            y + 3.0,
            width.max(1.0),
            ROW - 6.0,
            NAMES + width + 6.0,
            y + 15.0,
            figure(number),
            escaped(unit)
        );
    }
    svg(bars.len().max(1) as f64 * ROW + 4.0, title, &out)
}

/// A line that keeps its value until the next point, over time in seconds. `tick` formats a time.
pub(super) fn steps(points: &[(f64, f64)], labels: Labels<'_>, tick: impl Fn(f64) -> String) -> String {
    const TICKS: u32 = 3;
    let scale = Scale::from_zero(points.iter().map(|(_, y)| *y));
    let (first, last) = match (points.first(), points.last()) {
        (Some((first, _)), Some((last, _))) if last > first => (*first, *last),
        (Some((first, _)), _) => (first - 1.0, first + 1.0),
        _ => (0.0, 1.0),
    };
    let x = |time: f64| LEFT + (time - first) / (last - first) * (WIDTH - LEFT - RIGHT);
    let bottom = HEIGHT - BOTTOM;
    let mut path = format!("M{LEFT:.1} {bottom:.1}");
    let mut before = bottom;
    for (time, value) in points {
        let (x, y) = (x(*time), scale.y(*value));
        path += &format!(" L{x:.1} {before:.1} L{x:.1} {y:.1}");
        before = y;
    }
    path += &format!(" L{:.1} {before:.1}", WIDTH - RIGHT);
    let mut out = axes(&scale, labels);
    out += &format!("<path class=\"area\" d=\"{path} L{:.1} {bottom:.1} Z\"/>\n", WIDTH - RIGHT);
    out += &format!("<path class=\"line one\" d=\"{path}\"/>\n");
    for number in 0..=TICKS {
        let time = first + (last - first) * f64::from(number) / f64::from(TICKS);
        let anchor = match number {
            0 => "",
            TICKS => " end",
            _ => " middle",
        };
        out += &format!(
            "<text class=\"tick{anchor}\" x=\"{:.1}\" y=\"{:.1}\">{}</text>\n",
            x(time),
            bottom + 16.0,
            escaped(&tick(time))
        );
    }
    svg(HEIGHT, labels.title, &out)
}

/// Lines over named positions, with decades upwards.
pub(super) fn lines(lines: &[Line], positions: &[&str], labels: Labels<'_>) -> String {
    let scale = Scale::decades(lines.iter().flat_map(|line| line.points.iter().map(|(_, y)| *y)));
    let pitch = (WIDTH - LEFT - RIGHT) / positions.len().max(1) as f64;
    let x = |position: f64| LEFT + (position + 0.5) * pitch;
    let mut out = axes(&scale, labels);
    for (number, name) in positions.iter().enumerate() {
        out += &format!(
            "<text class=\"tick middle\" x=\"{:.1}\" y=\"{:.1}\">{}</text>\n",
            x(number as f64),
            HEIGHT - BOTTOM + 16.0,
            escaped(name)
        );
    }
    for (number, (line, class)) in lines.iter().zip(["one", "two", "three", "four"]).enumerate() {
        let points: Vec<String> =
            line.points.iter().map(|(position, y)| format!("{:.1},{:.1}", x(*position), scale.y(*y))).collect();
        let (key_x, key_y) = (LEFT + 14.0, TOP + 10.0 + number as f64 * 17.0);
        out += &format!(
            "<polyline class=\"line {class}\" points=\"{}\"/><line class=\"line {class}\" x1=\"{key_x}\" \
             y1=\"{key_y}\" x2=\"{}\" y2=\"{key_y}\"/><text class=\"tick\" x=\"{}\" y=\"{}\">{}</text>\n",
            points.join(" "),
            key_x + 22.0,
            key_x + 28.0,
            key_y + 4.0,
            escaped(&line.name)
        );
    }
    svg(HEIGHT, labels.title, &out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABELS: Labels<'_> = Labels { title: "t", x: "x", y: "y" };

    #[test]
    fn steps_are_round_and_few() {
        for (max, expected) in [(1.0, 0.2), (7.0, 2.0), (10.0, 2.0), (99.0, 20.0), (0.03, 0.01), (0.0, 0.2)] {
            assert!((step(max) - expected).abs() < 1e-12, "{max}: {}", step(max));
        }
        assert_eq!(Scale::from_zero([99.0].into_iter()).ticks(), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(Scale::decades([3.0, 250.0].into_iter()).ticks(), [1.0, 10.0, 100.0, 1000.0]);
    }

    #[test]
    fn plots_of_nothing_and_of_extremes_are_drawn() {
        let bar = |value: f64| Bar { label: "l".into(), title: "t".into(), parts: [value, 0.0] };
        for values in [vec![], vec![0.0], vec![1e-300, 1e300], vec![1.0; 1000]] {
            let drawn = [
                bars(&values.iter().copied().map(bar).collect::<Vec<_>>(), LABELS),
                named_bars(&values.iter().copied().map(bar).collect::<Vec<_>>(), "t", "u"),
                steps(&values.iter().map(|value| (5.0, *value)).collect::<Vec<_>>(), LABELS, |time| time.to_string()),
                lines(
                    &[Line { name: "n".into(), points: values.iter().map(|value| (0.0, *value)).collect() }],
                    &["p"],
                    LABELS,
                ),
            ];
            for plot in drawn {
                assert!(plot.starts_with("<svg") && plot.ends_with("</svg>\n"), "{plot}");
                assert!(!plot.contains("NaN") && !plot.contains("inf"), "{values:?}: {plot}");
            }
        }
    }
}
