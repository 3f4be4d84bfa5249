//! Columns of text, as wide as their widest cell.

/// Which side a column's cells stand on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// A table whose empty columns are left out. Rows may be interrupted by lines of their own.
pub(super) struct Table {
    heads: Vec<(&'static str, Align)>,
    lines: Vec<Line>,
}

enum Line {
    Row(Vec<String>),
    Text(String),
}

impl Table {
    pub fn new(heads: &[(&'static str, Align)]) -> Table {
        Table { heads: heads.to_vec(), lines: Vec::new() }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.heads.len());
        self.lines.push(Line::Row(cells));
    }

    pub fn text(&mut self, text: impl Into<String>) {
        self.lines.push(Line::Text(text.into()));
    }

    pub fn render(&self, out: &mut String) {
        let rows = || {
            self.lines.iter().filter_map(|l| match l {
                Line::Row(cells) => Some(cells),
                Line::Text(_) => None,
            })
        };
        let width = |i: usize| rows().map(|cells| cells[i].chars().count()).max().unwrap_or(0);
        let widths: Vec<Option<usize>> = (0..self.heads.len())
            .map(|i| Some(width(i)).filter(|w| *w > 0).map(|w| w.max(self.heads[i].0.chars().count())))
            .collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut text = String::new();
            for ((cell, width), (_, align)) in cells.zip(&widths).zip(&self.heads) {
                let Some(width) = *width else { continue };
                if !text.is_empty() {
                    text.push_str("  ");
                }
                match align {
                    Align::Left => text.push_str(&format!("{cell:<width$}")),
                    Align::Right => text.push_str(&format!("{cell:>width$}")),
                }
            }
            text.trim_end().to_owned()
        };
        out.push_str(&line(&mut self.heads.iter().map(|h| h.0)));
        out.push('\n');
        for l in &self.lines {
            match l {
                Line::Row(cells) => out.push_str(&line(&mut cells.iter().map(String::as_str))),
                Line::Text(text) => out.push_str(text.trim_end()),
            }
            out.push('\n');
        }
    }
}
