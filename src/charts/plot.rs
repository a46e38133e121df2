//! Panels as SVG, drawn with plotters.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::ChartError;
use super::panel::{Panel, Series, short};

/// Size of one panel with its axes and title, in pixels.
const PANEL: (u32, u32) = (510, 384);
/// Height of the heading, in pixels.
const HEADING: u32 = 40;
const FONT: &str = "sans-serif";
const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// Draws rows of two panels under a heading, as an SVG document.
///
/// # Errors
/// [`ChartError::Drawing`].
pub(super) fn svg(heading: &str, rows: &[[Panel; 2]]) -> Result<String, ChartError> {
    let mut svg = String::new();
    let size = (2 * PANEL.0, HEADING + PANEL.1 * rows.len() as u32);
    let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    page(&root, heading, rows).map_err(|error| ChartError::Drawing(error.to_string()))?;
    drop(root);
    Ok(svg)
}

fn page(root: &Area<'_>, heading: &str, rows: &[[Panel; 2]]) -> Drawn {
    root.fill(&WHITE)?;
    let (top, body) = root.split_vertically(HEADING);
    top.draw_text(heading, &text(15), (20, 14))?;
    let areas = body.split_evenly((rows.len(), 2));
    for (panel, area) in rows.iter().flatten().zip(&areas) {
        draw_panel(panel, area)?;
    }
    root.present()
}

fn draw_panel(panel: &Panel, area: &Area<'_>) -> Drawn {
    let (x, y) = (panel.x_axis(), panel.y_axis());
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, text(13))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(52)
        .build_cartesian_2d(
            (x.low..x.high).log_scale().with_key_points(x.ticks()),
            (y.low..y.high).log_scale().with_key_points(y.ticks()),
        )?;
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style(text(11))
        .axis_desc_style(text(12))
        .x_desc(panel.x_label)
        .y_desc(panel.y_label)
        .x_label_formatter(&|value| short(*value))
        .y_label_formatter(&|value| short(*value))
        .draw()?;
    for Series { name, colour, line, dots } in &panel.series {
        let colour = RGBColor(colour[0], colour[1], colour[2]);
        chart.draw_series(LineSeries::new(line.iter().copied(), colour))?;
        let dots = dots.iter().map(|&dot| Circle::new(dot, 3, colour.mix(0.75).filled()));
        let drawn = chart.draw_series(dots)?;
        if !name.is_empty() {
            drawn.label(name).legend(move |at| Circle::new(at, 4, colour.filled()));
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .legend_area_size(14)
        .label_font(text(11))
        .draw()
}

fn text(size: u32) -> TextStyle<'static> {
    (FONT, size).into_font().color(&INK)
}
