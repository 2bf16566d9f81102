//! Why a recipe cannot be used.

use std::path::{Path, PathBuf};

use super::names_in;

/// A recipe could not be used. The text names the file, and the line and key where there is one.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file could not be read.
    #[error("cannot read {}: {error}{}", path.display(), known_recipes(path))]
    Read {
        /// The recipe, or a file that it names.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// It is not TOML, or a key is unknown, missing or of the wrong type.
    #[error("{}: {text}", path.display())]
    Syntax {
        /// The recipe.
        path: PathBuf,
        /// The parser's own text, with line, column and the line itself.
        text: String,
    },
    /// A value makes no sense.
    #[error("{}:{line}: {key}: {text}", path.display())]
    Value {
        /// The recipe.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The key, with its tables.
        key: &'static str,
        /// What is wrong, and what would be right.
        text: String,
    },
}

/// After a recipe that is not there: those that are.
fn known_recipes(missing: &Path) -> String {
    let guests = missing.parent().and_then(Path::parent);
    let names = guests.map(names_in).unwrap_or_default();
    if missing.exists() || names.is_empty() {
        String::new()
    } else {
        format!(" (there are: {})", names.join(", "))
    }
}
