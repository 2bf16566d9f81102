//! Plots as SVG files.

use anyhow::{Context as _, Result, anyhow};
use plotters::prelude::{
    BLACK, ChartBuilder, Circle, Color, EmptyElement, IntoDrawingArea, Palette, Palette99,
    PathElement, RED, Rectangle, SVGBackend, WHITE,
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// How much wider a plot of lines is than they are.
const LEGEND: f64 = 1.35;

/// Points of one kind.
pub(crate) struct Series {
    /// Its name in the legend.
    pub(crate) name: String,
    /// (x, y) pairs.
    pub(crate) points: Vec<(f64, f64)>,
    /// Whether a line joins them, in their order.
    pub(crate) joined: bool,
}

/// A plot of points.
pub(crate) struct Plot<'a> {
    /// Title on top.
    pub(crate) title: &'a str,
    /// Name and unit of the x axis.
    pub(crate) x: &'a str,
    /// Name and unit of the y axis.
    pub(crate) y: &'a str,
    /// What is shown.
    pub(crate) series: Vec<Series>,
    /// Moments on the x axis, each with its name: a vertical line.
    pub(crate) marks: Vec<(f64, String)>,
}

impl Plot<'_> {
    /// The plot as an SVG document.
    ///
    /// # Errors
    /// It can't be drawn.
    pub(crate) fn svg(&self) -> Result<String> {
        self.draw()
            .map_err(|error| anyhow!("drawing {}: {error}", self.title))
    }

    /// Writes the plot to `folder/NAME.svg` and gives that path.
    ///
    /// # Errors
    /// The file can't be written.
    pub(crate) fn write(&self, folder: &Path, name: &str) -> Result<PathBuf> {
        let path = folder.join(format!("{name}.svg"));
        let svg = self.svg()?;
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&path, svg))
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    fn draw(&self) -> Result<String, Box<dyn std::error::Error + '_>> {
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, (960, 480)).into_drawing_area();
            area.fill(&WHITE)?;
            let points = || self.series.iter().flat_map(|series| &series.points);
            let last_x = points().map(|(x, _)| *x).fold(1.0, f64::max);
            // Lines go up to their last points; there the legend would cover them.
            let joined = self.series.iter().any(|series| series.joined);
            let right = last_x * if joined { LEGEND } else { 1.02 };
            let top = points().map(|(_, y)| *y).fold(1.0, f64::max);
            let mut chart = ChartBuilder::on(&area)
                .caption(self.title, ("sans-serif", 22))
                .margin(12)
                .x_label_area_size(44)
                .y_label_area_size(64)
                .build_cartesian_2d(0.0..right, 0.0..top * 1.1)?;
            chart
                .configure_mesh()
                .x_desc(self.x)
                .y_desc(self.y)
                .light_line_style(WHITE)
                .draw()?;
            for (x, name) in &self.marks {
                chart
                    .draw_series([PathElement::new([(*x, 0.0), (*x, top * 1.1)], RED)])?
                    .label(name.as_str())
                    .legend(|(x, y)| PathElement::new([(x, y), (x + 8, y)], RED));
            }
            for (index, series) in self.series.iter().enumerate() {
                let color = Palette99::pick(index).to_rgba();
                if series.joined {
                    chart.draw_series([PathElement::new(series.points.clone(), color)])?;
                }
                chart
                    .draw_series(series.points.iter().map(|point| {
                        EmptyElement::at(*point) + Circle::new((0, 0), 2, color.filled())
                    }))?
                    .label(series.name.as_str())
                    .legend(move |(x, y)| {
                        Rectangle::new([(x, y - 4), (x + 8, y + 4)], color.filled())
                    });
            }
            chart
                .configure_series_labels()
                .background_style(WHITE.mix(0.8))
                .border_style(BLACK.mix(0.3))
                .draw()?;
            area.present()?;
        }
        Ok(svg)
    }
}

#[cfg(test)]
mod tests {
    use super::{Plot, Series};

    #[test]
    fn a_plot_is_an_svg_with_its_points() {
        let plot = Plot {
            title: "Response times",
            x: "s",
            y: "ms",
            series: vec![Series {
                name: "UDP".into(),
                points: vec![(0.0, 4.0), (1.0, 8.0)],
                joined: false,
            }],
            marks: vec![(0.5, "power cut".into())],
        };
        let folder = tempfile::tempdir().unwrap();
        let path = plot.write(folder.path(), "times").unwrap();
        let svg = std::fs::read_to_string(path).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("Response times") && svg.contains("UDP"));
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.contains("power cut") && svg.contains("<polyline"));
    }

    #[test]
    fn an_empty_plot_can_be_drawn() {
        let plot = Plot {
            title: "none",
            x: "s",
            y: "ms",
            series: vec![],
            marks: vec![],
        };
        assert!(
            plot.write(tempfile::tempdir().unwrap().path(), "none")
                .is_ok()
        );
    }
}
