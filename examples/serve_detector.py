"""Serve a fused detector over HTTP: the threads of the server share one model.

python examples/serve_detector.py                # asks itself, from several threads
python examples/serve_detector.py --port 8000    # curl --data-binary @a.jpg localhost:8000
"""

import argparse
import io
import json
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from PIL import Image

from fastvision.data import DigitScenes
from fastvision.inference import load_predictor, read_picture
from fastvision.inference.results import as_records

parser = argparse.ArgumentParser(description="boxes, classes and scores of posted pictures")
parser.add_argument("--weights", default="digits", help="as of fastvision detect")
parser.add_argument("--port", type=int, help="serve until Ctrl-C")
options = parser.parse_args()

# requests run side by side, so each of them gets one core
torch.set_num_threads(1)
predictor = load_predictor("detection", weights=options.weights)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:  # noqa: N802 - the name that http.server calls
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            (findings,) = predictor([read_picture(io.BytesIO(body))])
        except ValueError as error:
            self.answer(400, {"error": str(error)})
            return
        names = [{"class": predictor.name(label)} for label in findings.labels.tolist()]
        records = zip(names, as_records(findings, predictor.category_ids), strict=True)
        self.answer(200, [{**name, **record} for name, record in records])

    def answer(self, status: int, content: object) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", options.port or 0), Handler)
if options.port is not None:
    print(f"listening on port {options.port}")
    server.serve_forever()
threading.Thread(target=server.serve_forever, daemon=True).start()


def ask(picture: bytes) -> list[dict[str, object]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}", picture) as response:
        found: list[dict[str, object]] = json.load(response)
    return found


def encoded(index: int) -> bytes:
    image, _ = scenes[index]
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


scenes = DigitScenes("test", length=8, size=128, n_objects=(1, 4), scale=(0.2, 0.5))
pictures = [encoded(i) for i in range(len(scenes))]
one_by_one = [ask(picture) for picture in pictures]
with ThreadPoolExecutor(4) as threads:
    at_once = list(threads.map(ask, pictures * 4))
server.shutdown()
for i, found in enumerate(one_by_one):
    digits = ", ".join(f"{x['class']} {x['score']:.2f}" for x in found)
    print(f"scene {i}: {digits or 'nothing'}")
assert at_once == one_by_one * 4
