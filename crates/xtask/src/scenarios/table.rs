//! The fault table: what each event does to a protected pair, every row with the outside oracle as its judge. Rows that
//! leave the pair in a good state share a lab, and a boot of the pair.

mod course;
mod draw;
mod entry;
mod guest;
mod rows;
mod stand;

pub(crate) use course::{Args, ROW_LIMIT, run};
pub(crate) use draw::Draw;
pub(crate) use entry::{Entry, Job};
pub(crate) use rows::{Row, all};
pub(crate) use stand::{Kit, Stand};
