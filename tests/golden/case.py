"""A case of a golden test as a file: a head of comments and "key: value" lines, and
parts that begin with "--- name". The scripts that run them say what is in them."""


class Case:
    def __init__(self, path, keys):
        """Of a file whose head may have these keys; "command" must be there once."""
        self.path = path
        self.head, self.keys, self.parts = [], [], {}
        part = None
        for line in path.read_text().split("\n")[:-1]:
            if line.startswith("--- "):
                part = line[4:].strip()
                self.parts[part] = []
            elif part is not None:
                self.parts[part].append(line)
            else:
                self.head.append(line)
                if line.strip() and not line.startswith("#"):
                    key, _, value = line.partition(":")
                    self.keys.append((key.strip(), value.strip()))
        unknown = {key for key, _ in self.keys} - set(keys)
        if unknown:
            raise ValueError(f"{path}: no such key: {', '.join(sorted(unknown))}")
        if len(self.all("command")) != 1:
            raise ValueError(f"{path}: has no line \"command: ...\", or several")

    def all(self, key):
        """The values of a key, in order."""
        return [value for name, value in self.keys if name == key]

    def first(self, key, default=None):
        return (self.all(key) or [default])[0]

    def text(self, part):
        return "".join(line + "\n" for line in self.parts.get(part, []))

    def exit(self):
        return int(self.first("exit", "0"))

    def write(self, stdout, stderr, code):
        """Has the file expect this."""
        head = [line for line in self.head if not line.startswith("exit:")]
        while head and not head[-1].strip():
            head.pop()
        if code:
            head.append(f"exit: {code}")
        out = "".join(line + "\n" for line in head)
        for part, lines in self.parts.items():
            if part not in ("stdout", "stderr"):
                out += f"--- {part}\n" + "".join(line + "\n" for line in lines)
        for part, text in (("stdout", stdout), ("stderr", stderr)):
            if text:
                out += f"--- {part}\n{text}"
        self.path.write_text(out)

    def differences(self, stdout, stderr, code, same=lambda expected, text: expected == text):
        """What was printed and not expected, a text each."""
        wrong = []
        if code != self.exit():
            wrong.append(f"exit code {code} instead of {self.exit()}")
        for part, text in (("stdout", stdout), ("stderr", stderr)):
            if not same(self.text(part), text):
                wrong.append(f"{part} is\n{text}instead of\n{self.text(part)}")
        return wrong


def as_lines(text):
    """As it stands in a file of lines: a carriage return is shown, and a line that
    does not end."""
    text = text.replace("\r", "\\r")
    return text if not text or text.endswith("\n") else text + "\\no line feed\n"
