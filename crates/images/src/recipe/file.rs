//! What a recipe's values must be like. Errors name the file, the line and the key.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;

use super::RecipeError;
use super::source::Source;

/// The text of a recipe, for errors that name its lines.
pub(super) struct RecipeFile {
    path: PathBuf,
    directory: PathBuf,
    text: String,
}

impl RecipeFile {
    /// Reads `guests/name/recipe.toml`.
    pub(super) fn read(guests: &Path, name: &str) -> Result<(Source, Self), RecipeError> {
        let directory = guests.join(name);
        let path = directory.join("recipe.toml");
        let text = fs::read_to_string(&path).map_err(|error| RecipeError::Read {
            path: path.clone(),
            error,
        })?;
        let source: Source = toml::from_str(&text).map_err(|e| RecipeError::Syntax {
            path: path.clone(),
            text: e.to_string().trim_end().to_owned(),
        })?;
        let file = Self {
            path,
            directory,
            text,
        };
        if source.name.get_ref() != name {
            return Err(file.wrong(
                &source.name,
                "name",
                format!("must be that of the directory, \"{name}\""),
            ));
        }
        Ok((source, file))
    }

    /// That a value makes no sense.
    pub(super) fn wrong<T>(
        &self,
        value: &Spanned<T>,
        key: &'static str,
        text: impl Into<String>,
    ) -> RecipeError {
        let Range { start, .. } = value.span();
        let line = self.text[..start.min(self.text.len())]
            .matches('\n')
            .count()
            + 1;
        RecipeError::Value {
            path: self.path.clone(),
            line,
            key,
            text: text.into(),
        }
    }

    /// A path in the guest, without a slash at its end.
    pub(super) fn absolute(
        &self,
        path: &Spanned<String>,
        key: &'static str,
    ) -> Result<String, RecipeError> {
        let text = path.get_ref();
        let clean =
            text.starts_with('/') && text.split('/').all(|part| part != "." && part != "..");
        if !clean || text.trim_matches('/').is_empty() {
            return Err(self.wrong(
                path,
                key,
                format!("\"{text}\" must be a path from the guest's root, such as \"/etc/motd\""),
            ));
        }
        Ok(text.trim_end_matches('/').to_owned())
    }

    /// Names of packages, services and recipes.
    pub(super) fn check_name(
        &self,
        name: &Spanned<String>,
        key: &'static str,
    ) -> Result<(), RecipeError> {
        self.check_name_in(name, name.get_ref(), key)
    }

    /// [`Self::check_name`] for a name that is part of `value`.
    pub(super) fn check_name_in<T>(
        &self,
        value: &Spanned<T>,
        text: &str,
        key: &'static str,
    ) -> Result<(), RecipeError> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-._".contains(c);
        if text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(fits) {
            return Ok(());
        }
        Err(self.wrong(
            value,
            key,
            format!("\"{text}\" must begin with a letter or digit and hold a-z 0-9 + - . _ alone"),
        ))
    }

    /// Permissions of a file.
    pub(super) fn mode(
        &self,
        mode: &Spanned<String>,
        key: &'static str,
    ) -> Result<u32, RecipeError> {
        match u32::from_str_radix(mode.get_ref(), 8) {
            Ok(number) if number <= 0o7777 => Ok(number),
            _ => Err(self.wrong(
                mode,
                key,
                format!("\"{}\" must be octal, such as \"0755\"", mode.get_ref()),
            )),
        }
    }

    /// A SHA-256 digest in hexadecimal.
    pub(super) fn sha256(
        &self,
        digest: &Spanned<String>,
        key: &'static str,
    ) -> Result<String, RecipeError> {
        let text = digest.get_ref();
        let digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if text.len() == 64 && text.chars().all(digit) {
            return Ok(text.clone());
        }
        Err(self.wrong(digest, key, format!("\"{text}\" must be 64 digits 0-9 a-f")))
    }

    /// A size, in MiB.
    pub(super) fn mebibytes(
        &self,
        size: &Spanned<String>,
        key: &'static str,
    ) -> Result<u32, RecipeError> {
        let (digits, factor) = match size.get_ref().split_once(' ') {
            Some((digits, "MiB")) => (digits, 1),
            Some((digits, "GiB")) => (digits, 1024),
            _ => ("", 1),
        };
        let number = digits
            .parse()
            .ok()
            .and_then(|n: u32| n.checked_mul(factor))
            .filter(|n| *n > 0);
        number.ok_or_else(|| {
            self.wrong(
                size,
                key,
                format!(
                    "\"{}\" must be a size such as \"512 MiB\" or \"1 GiB\"",
                    size.get_ref()
                ),
            )
        })
    }

    /// The content of a file beside the recipe.
    pub(super) fn own(
        &self,
        name: &Spanned<String>,
        key: &'static str,
    ) -> Result<Vec<u8>, RecipeError> {
        let text = name.get_ref();
        if text.is_empty() || text.contains('/') || text.starts_with('.') {
            return Err(self.wrong(
                name,
                key,
                format!("\"{text}\" must be the name of a file beside the recipe"),
            ));
        }
        fs::read(self.directory.join(text))
            .map_err(|e| self.wrong(name, key, format!("cannot read \"{text}\": {e}")))
    }
}
