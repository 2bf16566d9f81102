//! The fault table: what each event does to a protected pair, every row with the outside oracle as its judge. Rows that
//! leave the pair in a good state share a lab, and a boot of the pair.

mod course;
mod draw;
mod guest;
mod journal;
mod rows;
mod stand;

pub(crate) use course::{Args, ROW_LIMIT, run};
pub(crate) use draw::Draw;
pub(crate) use journal::{Entry, Job, Journal};
pub(crate) use rows::{Row, all};
pub(crate) use stand::{Kit, Stand};
