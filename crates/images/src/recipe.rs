//! Guest recipes: what goes into a guest's images, as `guests/NAME/recipe.toml` says it (guests/README.md explains the
//! keys to people).

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

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

/// The names of the recipes in `guests`, sorted.
pub(crate) fn names_in(guests: &Path) -> Vec<String> {
    let entries = fs::read_dir(guests)
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let recipes = entries.filter(|e| e.path().join("recipe.toml").is_file());
    let mut names: Vec<String> = recipes
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// The file as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    name: Spanned<String>,
    base: Option<Spanned<String>>,
    summary: String,
    memory: Option<Spanned<String>>,
    command_line: Option<String>,
    #[serde(default)]
    packages: Vec<Spanned<String>>,
    #[serde(default)]
    modules: Vec<String>,
    #[serde(default)]
    keep: Vec<Spanned<String>>,
    #[serde(default, rename = "program")]
    programs: Vec<ProgramSource>,
    #[serde(default, rename = "file")]
    files: Vec<FileSource>,
    #[serde(default, rename = "link")]
    links: Vec<LinkSource>,
    #[serde(default, rename = "certificate")]
    certificates: Vec<CertificateSource>,
    #[serde(default, rename = "service")]
    services: Vec<ServiceSource>,
    disk: Option<DiskSource>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProgramSource {
    directory: Spanned<String>,
    names: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSource {
    path: Spanned<String>,
    source: Spanned<String>,
    mode: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkSource {
    path: Spanned<String>,
    target: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CertificateSource {
    certificate: Spanned<String>,
    key: Spanned<String>,
    names: Spanned<Vec<String>>,
    #[serde(default)]
    addresses: Vec<std::net::IpAddr>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceSource {
    name: Spanned<String>,
    start: String,
    ready: Option<String>,
    stop: Option<String>,
    #[serde(default)]
    on_request: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskSource {
    size: Option<Spanned<String>>,
    #[serde(default)]
    modules: Vec<String>,
    init: Option<Spanned<String>>,
    #[serde(default)]
    whole_packages: bool,
}

/// A recipe with its bases merged in and its own files read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recipe {
    /// The same as its directory's.
    pub name: String,
    /// One line for people.
    pub summary: String,
    /// Memory that the guest wants, in MiB.
    pub memory_mib: u32,
    /// The kernel's command line, without the network.
    pub command_line: String,
    pub(crate) packages: Vec<String>,
    pub(crate) modules: Vec<String>,
    pub(crate) keep: Vec<String>,
    pub(crate) programs: Vec<String>,
    pub(crate) files: Vec<OwnFile>,
    pub(crate) links: Vec<(String, String)>,
    pub(crate) certificates: Vec<Certificate>,
    pub(crate) services: Vec<Service>,
    pub(crate) disk_mib: u32,
    pub(crate) disk_modules: Vec<String>,
    pub(crate) disk_init: Vec<u8>,
    pub(crate) whole_packages: bool,
}

/// A file of the recipe's own directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnFile {
    pub(crate) path: String,
    pub(crate) mode: u32,
    pub(crate) content: Vec<u8>,
}

/// A self-signed certificate to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Certificate {
    /// Where in the guest it lies.
    pub(crate) path: String,
    /// Where in the guest its private key lies.
    pub(crate) key_path: String,
    /// The first is the subject.
    pub(crate) names: Vec<String>,
    pub(crate) addresses: Vec<std::net::IpAddr>,
}

/// What the guest runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) start: String,
    pub(crate) ready: Option<String>,
    pub(crate) stop: Option<String>,
    pub(crate) on_request: bool,
}

impl Recipe {
    /// Reads `guests/name/recipe.toml`, its bases and all files that they name.
    ///
    /// # Errors
    /// Fails with file, line and key where something is wrong.
    pub fn read(guests: &Path, name: &str) -> Result<Self, RecipeError> {
        Self::read_with_bases(guests, name, &mut Vec::new())
    }

    fn read_with_bases(
        guests: &Path,
        name: &str,
        seen: &mut Vec<String>,
    ) -> Result<Self, RecipeError> {
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
        let file = RecipeFile {
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
        seen.push(name.to_owned());
        let mut recipe = match &source.base {
            None => Self {
                memory_mib: 512,
                disk_mib: 256,
                ..Self::default()
            },
            Some(base) if seen.contains(base.get_ref()) => {
                return Err(file.wrong(
                    base,
                    "base",
                    format!("goes round in a circle: {}", seen.join(" → ")),
                ));
            }
            Some(base) => {
                file.check_name(base, "base")?;
                Self::read_with_bases(guests, base.get_ref(), seen)?
            }
        };
        recipe.extend(source, &file)?;
        Ok(recipe)
    }

    /// Adds `source` to what came from its base: lists grow, single values are replaced.
    fn extend(&mut self, source: Source, file: &RecipeFile) -> Result<(), RecipeError> {
        self.name = source.name.into_inner();
        self.summary = source.summary;
        if let Some(memory) = &source.memory {
            self.memory_mib = file.mebibytes(memory, "memory")?;
        }
        if let Some(command_line) = source.command_line {
            self.command_line = command_line;
        }
        for package in source.packages {
            file.check_name(&package, "packages")?;
            self.packages.push(package.into_inner());
        }
        self.modules.extend(source.modules);
        for path in source.keep {
            self.keep.push(file.absolute(&path, "keep")?);
        }
        for program in source.programs {
            let directory = file.absolute(&program.directory, "program.directory")?;
            self.programs.extend(
                program
                    .names
                    .iter()
                    .map(|name| format!("{directory}/{name}")),
            );
        }
        for own in source.files {
            let mode = own
                .mode
                .as_ref()
                .map_or(Ok(0o644), |m| file.mode(m, "file.mode"))?;
            let path = file.absolute(&own.path, "file.path")?;
            self.files.push(OwnFile {
                path,
                mode,
                content: file.own(&own.source, "file.source")?,
            });
        }
        for link in source.links {
            self.links
                .push((file.absolute(&link.path, "link.path")?, link.target));
        }
        for certificate in source.certificates {
            if certificate.names.get_ref().is_empty() {
                return Err(file.wrong(
                    &certificate.names,
                    "certificate.names",
                    "needs one name at least",
                ));
            }
            self.certificates.push(Certificate {
                path: file.absolute(&certificate.certificate, "certificate.certificate")?,
                key_path: file.absolute(&certificate.key, "certificate.key")?,
                names: certificate.names.into_inner(),
                addresses: certificate.addresses,
            });
        }
        for service in source.services {
            file.check_name(&service.name, "service.name")?;
            let ServiceSource {
                name,
                start,
                ready,
                stop,
                on_request,
            } = service;
            self.services.push(Service {
                name: name.into_inner(),
                start,
                ready,
                stop,
                on_request,
            });
        }
        if let Some(disk) = source.disk {
            if let Some(size) = &disk.size {
                self.disk_mib = file.mebibytes(size, "disk.size")?;
            }
            if let Some(init) = &disk.init {
                self.disk_init = file.own(init, "disk.init")?;
            }
            self.disk_modules.extend(disk.modules);
            self.whole_packages |= disk.whole_packages;
        }
        Ok(())
    }
}

/// The text of a recipe, for errors that name its lines.
struct RecipeFile {
    path: PathBuf,
    directory: PathBuf,
    text: String,
}

impl RecipeFile {
    fn wrong<T>(
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
    fn absolute(&self, path: &Spanned<String>, key: &'static str) -> Result<String, RecipeError> {
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

    fn check_name(&self, name: &Spanned<String>, key: &'static str) -> Result<(), RecipeError> {
        let text = name.get_ref();
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-._".contains(c);
        if text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(fits) {
            return Ok(());
        }
        Err(self.wrong(
            name,
            key,
            format!("\"{text}\" must begin with a letter or digit and hold a-z 0-9 + - . _ alone"),
        ))
    }

    fn mode(&self, mode: &Spanned<String>, key: &'static str) -> Result<u32, RecipeError> {
        match u32::from_str_radix(mode.get_ref(), 8) {
            Ok(number) if number <= 0o7777 => Ok(number),
            _ => Err(self.wrong(
                mode,
                key,
                format!("\"{}\" must be octal, such as \"0755\"", mode.get_ref()),
            )),
        }
    }

    fn mebibytes(&self, size: &Spanned<String>, key: &'static str) -> Result<u32, RecipeError> {
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
    fn own(&self, name: &Spanned<String>, key: &'static str) -> Result<Vec<u8>, RecipeError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name = \"x\"\nsummary = \"s\"\n";

    fn read(text: &str) -> Result<Recipe, RecipeError> {
        let guests = tempfile::tempdir().unwrap();
        fs::create_dir(guests.path().join("x")).unwrap();
        fs::write(guests.path().join("x/recipe.toml"), text).unwrap();
        fs::write(guests.path().join("x/own"), "content").unwrap();
        Recipe::read(guests.path(), "x")
    }

    fn error(more: &str) -> String {
        let error = read(&format!("{GOOD}{more}")).unwrap_err().to_string();
        let (directory, text) = error.split_once("recipe.toml").unwrap();
        assert!(directory.ends_with("x/"), "{error}");
        text.to_owned()
    }

    #[test]
    fn a_small_recipe_is_read() {
        let text = format!(
            "{GOOD}memory = \"1 GiB\"\n[[file]]\npath = \"/etc/own\"\nsource = \"own\"\nmode = \"0600\"\n"
        );
        let recipe = read(&text).unwrap();
        assert_eq!(recipe.memory_mib, 1024);
        assert_eq!(
            recipe.files,
            [OwnFile {
                path: "/etc/own".into(),
                mode: 0o600,
                content: b"content".to_vec()
            }]
        );
    }

    #[test]
    fn errors_name_file_line_and_key() {
        let text = error("packges = []\n");
        assert!(
            text.contains("line 3") && text.contains("packges") && text.contains("`packages`"),
            "{text}"
        );
        let text = error("memory = 512\n");
        assert!(
            text.contains("line 3") && text.contains("memory = 512"),
            "{text}"
        );
        assert_eq!(
            error("memory = \"512\"\n"),
            ":3: memory: \"512\" must be a size such as \"512 MiB\" or \"1 GiB\""
        );
        assert!(
            error("[[file]]\npath = \"etc/x\"\nsource = \"own\"\n")
                .starts_with(":4: file.path: \"etc/x\" must be")
        );
        assert!(
            error("[[file]]\npath = \"/x\"\nsource = \"gone\"\n")
                .starts_with(":5: file.source: cannot read \"gone\"")
        );
        assert!(
            error("[[file]]\npath = \"/x\"\nsource = \"../x\"\n")
                .starts_with(":5: file.source: \"../x\" must be")
        );
        assert!(
            error("[[file]]\npath = \"/x\"\nsource = \"own\"\nmode = \"9\"\n")
                .starts_with(":6: file.mode: \"9\"")
        );
        assert!(
            error("packages = [\n  \"a\",\n  \"-o\",\n]\n")
                .starts_with(":5: packages: \"-o\" must begin")
        );
        assert!(error("base = \"x\"\n").starts_with(":3: base: goes round in a circle: x"));
    }

    #[test]
    fn a_recipe_that_is_not_there_brings_up_those_that_are() {
        let guests = tempfile::tempdir().unwrap();
        fs::create_dir(guests.path().join("x")).unwrap();
        fs::write(guests.path().join("x/recipe.toml"), GOOD).unwrap();
        let error = Recipe::read(guests.path(), "y").unwrap_err().to_string();
        assert!(error.ends_with("(there are: x)"), "{error}");
    }

    #[test]
    fn what_the_base_says_comes_first_and_is_replaced_or_extended() {
        let guests = tempfile::tempdir().unwrap();
        for (name, text) in [
            (
                "a",
                "name = \"a\"\nsummary = \"A\"\nmemory = \"64 MiB\"\ncommand_line = \"quiet\"\npackages = [\"p\"]\n",
            ),
            (
                "b",
                "name = \"b\"\nbase = \"a\"\nsummary = \"B\"\nmemory = \"1 GiB\"\npackages = [\"q\"]\n",
            ),
        ] {
            fs::create_dir(guests.path().join(name)).unwrap();
            fs::write(guests.path().join(name).join("recipe.toml"), text).unwrap();
        }
        let recipe = Recipe::read(guests.path(), "b").unwrap();
        assert_eq!(
            (recipe.memory_mib, recipe.command_line.as_str()),
            (1024, "quiet")
        );
        assert_eq!(recipe.packages, ["p", "q"]);
    }

    #[test]
    fn the_recipes_of_the_project_are_sound() {
        let guests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guests");
        let names = names_in(&guests);
        assert!(names.iter().any(|n| n == "registrar"), "{names:?}");
        for name in names {
            let recipe = Recipe::read(&guests, &name).unwrap();
            assert!(
                !recipe.disk_init.is_empty() && recipe.programs.len() > 1,
                "{name}"
            );
        }
    }
}
