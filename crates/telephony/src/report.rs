//! What a run measured, as files: tables as CSV and JSON, and one page of HTML that needs nothing else.

mod page;
mod table;

pub use page::{Figure, Page, Section, escape};
pub use table::{Cell, Column, Form, Misfit, Table};
