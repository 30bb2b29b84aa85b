//! Writes a run as the workbench's own trace: `wb.Trace.load("native.trace")`. Needs std alone.
use std::{fs, io, path::Path};

/// Fields of one run, by their names in the schema and without batch dimension.
#[derive(Default)]
pub struct Trace(Vec<Field>);

struct Field {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Trace {
    /// A whole field, row by row: `put("flow/mel", &[80, frames], &mel)`.
    pub fn put(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}");
        self.add(name, "F32", shape.to_vec(), le(values, |v| v.to_le_bytes()));
    }

    /// Ids: `put_ids("lm/speech_token", &tokens)`.
    pub fn put_ids(&mut self, name: &str, ids: &[i64]) {
        self.add(name, "I64", vec![ids.len()], le(ids, |v| v.to_le_bytes()));
    }

    /// The next knot or step of a field that grows: `push("flow/x", &[80, frames], &x)`.
    pub fn push(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}");
        if !self.0.iter().any(|f| f.name == name) {
            self.add(name, "F32", [&[0], shape].concat(), vec![]);
        }
        let field = self.0.iter_mut().find(|f| f.name == name).unwrap();
        assert_eq!(&field.shape[1..], shape, "{name}");
        field.shape[0] += 1;
        field.bytes.extend(le(values, |v| v.to_le_bytes()));
    }

    /// Write the file, whole or not at all; the target begins in frame `prompt_frames`.
    pub fn save(mut self, path: &Path, text: &str, prompt_frames: usize) -> io::Result<()> {
        self.0.sort_by_key(|f| f.dtype != "I64"); // wider values first, so that all lie aligned
        let attrs = format!(
            r#"{{"text":{},"sample_rate":24000,"timings":{{}},"prompt_frames":{prompt_frames}}}"#,
            quoted(text)
        );
        let about = quoted(&format!(r#"{{"version":2,"attrs":{attrs}}}"#));
        let mut header = format!(r#"{{"__metadata__":{{"workbench_trace":{about}}}"#);
        let mut data = vec![];
        for Field {
            name,
            dtype,
            shape,
            bytes,
        } in &self.0
        {
            let at = [data.len(), data.len() + bytes.len()];
            header += &format!(r#",{}:{{"dtype":"{dtype}","#, quoted(name));
            header += &format!(r#""shape":{shape:?},"data_offsets":{at:?}}}"#);
            data.extend(bytes);
        }
        header += "}";
        header += &" ".repeat((8 - header.len() % 8) % 8);
        let length = (header.len() as u64).to_le_bytes();
        let partial = path.with_extension("partial");
        fs::write(&partial, [&length, header.as_bytes(), &data].concat())?;
        fs::rename(partial, path)
    }

    fn add(&mut self, name: &str, dtype: &'static str, shape: Vec<usize>, bytes: Vec<u8>) {
        let name = name.to_string();
        self.0.push(Field {
            name,
            dtype,
            shape,
            bytes,
        });
    }
}

fn le<T: Copy, const N: usize>(values: &[T], bytes: fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|v| bytes(*v)).collect()
}

fn quoted(text: &str) -> String {
    let escaped = text.chars().map(|c| match c {
        '"' | '\\' => format!("\\{c}"),
        c if c < ' ' => format!("\\u{:04x}", c as u32),
        c => c.to_string(),
    });
    format!("\"{}\"", escaped.collect::<String>())
}
