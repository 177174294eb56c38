"""The web page when something is in its way: errors, a busy server, keys, limits, small screens, the dark."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from images import draw_noise, encode
from model_servers import model_server
from playwright.sync_api import expect
from scripted import ScriptedCaptioner
from webpage import add, photo, word

from captioner import Captioner
from captioner.runners import Address
from captioner.runners.remote import RemoteRunner

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import FilePayload, Locator, Page, Route

PHONE = {"width": 390, "height": 844}


def problem(card: Locator) -> list[str]:
    """Title and detail of the error on a card."""
    card.locator(".problem").wait_for()
    return [card.locator(f".problem .{part}").inner_text() for part in ("title", "detail")]


def test_errors_are_told_in_words(page: Page, serve: Callable[..., str]):
    page.goto(serve())
    broken: FilePayload = {"name": "cut.png", "mimeType": "image/png", "buffer": photo()["buffer"][:60]}
    text: FilePayload = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"milk, bread"}
    cards = add(page, broken, text, photo("good.png"))
    title, detail = problem(cards.nth(0))
    assert title == "The photo cannot be decoded"
    assert re.match("[A-Z]", detail)
    assert "cut.png" not in detail
    assert problem(cards.nth(1)) == ["Not a photo", "It is text/plain."]
    expect(page.get_by_role("heading", level=2)).to_have_text("3 photos · 2 without a caption")
    expect(cards.nth(2).locator(".caption")).to_have_text("a photo 120 wide and 80 high")
    assert page.get_by_role("button", name="Try again").count() == 0


def test_a_lost_connection_is_told_and_tried_again(
    page: Page, serve: Callable[..., str], captioner: ScriptedCaptioner
):
    page.goto(serve(), wait_until="networkidle")  # the browser fetches the icon when it has time
    page.context.set_offline(True)
    cards = add(page, *(photo(f"{number}.png") for number in range(6)))
    assert problem(cards.first) == ["The server cannot be reached", "Is it running, and are you online?"]
    expect(page.get_by_role("status").first).to_have_text("server out of reach")
    expect(cards.last.locator(".said")).to_have_text("Waiting for its turn")
    page.context.set_offline(False)
    expect(page.get_by_role("heading", level=2)).to_have_text("6 photos")
    expect(cards.last.locator(".caption")).to_have_text("a photo 120 wide and 80 high")
    assert cards.first.locator(".problem").is_hidden()
    expect(page.get_by_role("status").first).to_have_text("scripted on cpu")
    assert len(captioner.streamed) == 6, "each once"


def test_a_photo_that_the_connection_breaks_on_again_and_again_is_left(page: Page, serve: Callable[..., str]):
    page.goto(serve())
    asked = list[str]()

    def fail(route: Route) -> None:
        asked.append(route.request.url)
        route.abort()

    page.route("**/v1/captions/stream", fail)
    with page.expect_event("requestfailed", lambda request: len(asked) == 4):  # three times by itself
        card = add(page, photo())
    expect(page.get_by_role("heading", level=2)).to_have_text("1 photo · 1 without a caption")
    page.unroute("**/v1/captions/stream")
    card.get_by_role("button", name="Try again").click()
    expect(card.locator(".caption")).to_have_text("a photo 120 wide and 80 high")
    assert len(asked) == 4


def test_a_failure_in_the_midst_of_a_caption_is_told(
    page: Page, serve: Callable[..., str], captioner: ScriptedCaptioner
):
    captioner.broken.add("scene.png")
    page.goto(serve())
    card = add(page, photo())
    assert problem(card)[0] == "The model failed"
    captioner.broken.clear()
    card.get_by_role("button", name="Try again").click()
    expect(card.locator(".caption")).to_have_text("a photo 120 wide and 80 high")


def test_a_model_on_a_server_says_where_photos_go(
    page: Page, serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with model_server(logprobs="no") as server:
        runner = RemoteRunner(Address.parse(server.openai))
        page.goto(serve(Captioner(runner, name="made/up")))
        host = f"127.0.0.1:{server.port}"
        expect(page.get_by_role("status").first).to_have_text(f"made/up on {host}")
        expect(page.locator("footer")).to_contain_text(f"this server, which sends them on to {host}.")
        page.locator("summary").click()
        expect(page.get_by_label("Beams")).to_be_disabled()
        card = add(page, photo())
        expect(card.locator(".caption")).to_contain_text("a photo 120 wide and 80 high")
        expect(card.locator(".facts")).to_have_text("120 × 80 · made/up")
        assert card.get_by_role("button", name="photo", exact=True).count() == 1, "no word is said to be sure"


def test_a_busy_server_is_asked_again(page: Page, serve: Callable[..., str], captioner: ScriptedCaptioner):
    captioner.hold()
    page.goto(serve(queue_size=1))
    add(page, photo("one.png"), photo("two.png"))
    expect(page.get_by_text("Too many photos at once · asking again in")).to_be_visible()
    captioner.release()
    expect(page.get_by_role("heading", level=2)).to_have_text("2 photos")
    assert len(captioner.streamed) == 2


def test_a_model_that_warms_up_is_waited_for(
    page: Page, serve: Callable[..., str], captioner: ScriptedCaptioner
):
    captioner.warm.clear()
    page.goto(serve())
    expect(page.get_by_role("status").first).to_have_text("model is warming up")
    card = add(page, photo())
    expect(card.locator(".said")).to_contain_text("Not ready · asking again in")
    captioner.warm.set()
    expect(card.locator(".caption")).to_have_text("a photo 120 wide and 80 high")
    expect(page.get_by_role("status").first).to_have_text("scripted on cpu")


def test_an_api_key_is_asked_for_and_forgotten_with_the_tab(page: Page, serve: Callable[..., str]):
    url = serve(api_keys="secret")
    page.goto(url)
    expect(page.get_by_role("status").first).to_have_text("needs an API key")
    cards = add(page, *(photo(f"{number}.png") for number in range(5)))
    assert problem(cards.first)[0] == "This server wants an API key"
    expect(cards.locator(".said").last).to_have_text("Waiting for its turn")
    key = page.get_by_label("API key")
    expect(key).to_be_focused()
    assert key.get_attribute("aria-invalid") == "true"
    key.fill("secret")
    key.press("Enter")
    expect(page.get_by_role("heading", level=2)).to_have_text("5 photos")
    expect(page.get_by_role("status").first).to_have_text("scripted on cpu")
    assert page.evaluate("[Object.values(sessionStorage), {...localStorage}, document.cookie]") == [
        ["secret"],
        {},
        "",
    ]
    page.reload()
    expect(page.get_by_role("status").first).to_have_text("scripted on cpu")
    other = page.context.new_page()
    other.goto(url)
    expect(other.get_by_role("status").first).to_have_text("needs an API key")


@pytest.mark.parametrize("limit", [{"max_upload_mb": 1}, {"max_pixels": 600_000}])
def test_a_photo_over_a_limit_is_sent_smaller(limit: dict[str, float], page: Page, serve: Callable[..., str]):
    page.goto(serve(**limit))
    large = encode(draw_noise(2200, 300), "PNG", compress_level=1)
    assert len(large) > 1e6
    card = add(page, {"name": "large.png", "mimeType": "image/png", "buffer": large})
    expect(card.locator(".caption")).to_have_text("a photo 2048 wide and 279 high")
    assert "sent at 2048 × 279" in card.locator(".facts").inner_text()


def test_a_format_that_browsers_do_not_show_is_captioned(page: Page, serve: Callable[..., str]):
    page.goto(serve())
    card = add(page, photo("phone.heic", format="HEIC"))
    expect(card.locator(".caption")).to_have_text("a photo 120 wide and 80 high")
    expect(card.locator(".photo")).to_have_class("photo no-preview")
    box = card.locator(".photo").bounding_box()
    assert box
    assert box["width"] / box["height"] == pytest.approx(1.5, abs=0.01)


def test_on_a_phone_photo_and_words_share_the_screen(page: Page, serve: Callable[..., str]):
    page.set_viewport_size(PHONE)
    page.goto(serve())
    card = add(page, photo("tall.png", size=(300, 900)))
    word(page, "photo").tap()
    frame, caption = card.locator(".stage").bounding_box(), card.locator(".caption").bounding_box()
    assert frame
    assert caption
    assert frame["y"] >= 0
    assert caption["y"] >= frame["y"] + frame["height"]
    assert caption["y"] + caption["height"] <= PHONE["height"]
    for state in ("closed", "open"):
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"], state
        page.get_by_text("Options").click()
    small = page.evaluate(
        """[...document.querySelectorAll("button:not(.word), summary, .drop")].filter((element) => {
            const {width, height} = element.getBoundingClientRect();
            return width && (width < 44 || height < 40);
        }).map((element) => element.outerHTML)"""
    )
    assert small == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(scheme: str, page: Page, serve: Callable[..., str]):
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.goto(serve())
    add(page, photo(), {"name": "cut.png", "mimeType": "image/png", "buffer": photo()["buffer"][:60]})
    expect(page.get_by_role("heading", level=2)).to_have_text("2 photos · 1 without a caption")
    page.get_by_text("Options").click()
    word(page, "photo").click()
    contrasts = page.evaluate(
        """() => {
            const channels = (text) => text.match(/[\\d.]+/g).map(Number);
            const luminance = ([r, g, b]) => [r, g, b].map((value) => value / 255)
                .map((part) => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
                .reduce((sum, part, i) => sum + part * [.2126, .7152, .0722][i], 0);
            const opaque = (element) => {
                for (; element; element = element.parentElement) {
                    const colour = channels(getComputedStyle(element).backgroundColor);
                    if (colour.length === 3) return colour;
                }
            };
            const isText = (node) => node.nodeType === Node.TEXT_NODE && node.data.trim();
            const hasText = (element) => element.offsetParent && [...element.childNodes].some(isText);
            return [...document.body.querySelectorAll("*")].filter(hasText).map((element) => {
                const [a, b] = [channels(getComputedStyle(element).color), opaque(element)].map(luminance);
                return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), element.outerHTML.slice(0, 80)];
            });
        }"""
    )
    assert len(contrasts) > 30
    assert [(ratio, html) for ratio, html in contrasts if ratio < 4.5] == []
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 128 * 3) == (scheme == "dark")


def test_nothing_moves_for_those_who_asked_for_it(
    page: Page, serve: Callable[..., str], captioner: ScriptedCaptioner
):
    captioner.hold()
    page.goto(serve())
    add(page, photo())
    expect(page.locator(".said")).to_have_text("Looking")
    moving = "document.getAnimations().filter((animation) => animation.playState === 'running').length"
    assert page.evaluate(moving) > 0
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(moving) == 0


def test_keyboard_alone_reaches_everything(page: Page, serve: Callable[..., str]):
    page.goto(serve())
    cards = add(page, photo("one.png"), photo("two.png"))
    expect(page.get_by_role("heading", level=2)).to_have_text("2 photos")
    page.locator("body").focus()
    reached = []
    for _ in range(23):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                """(() => {
                    const at = document.activeElement, ringed = at.closest(".drop") ?? at;
                    return [at.ariaLabel ?? at.textContent.trim(), getComputedStyle(ringed).outlineStyle];
                })()"""
            )
        )
    names = [name for name, _ in reached]
    per_card = ["a, 50% sure, looked at the top left", "Copy caption", "Copy HTML alt"]
    per_card += ["Copy “another 0”", "Copy “another 1”"]
    expected = ["API", "", "Options", "Sort", "Caption again", "Download as JSON", "Download as CSV", "Clear"]
    for name in ("one.png", "two.png"):
        expected += [f"Remove {name}", *per_card]
    assert names[: len(expected)] == expected
    assert [name for name, outline in reached[: len(expected)] if outline == "none"] == []
    assert cards.count() == 2


def test_the_page_has_landmarks_and_names(page: Page, serve: Callable[..., str]):
    page.goto(serve())
    add(page, photo("one.png"))
    expect(page.get_by_role("main")).to_match_aria_snapshot(
        """
        - main:
          - region "Add photos"
          - region "1 photo":
            - list:
              - listitem:
                - article:
                  - img "a photo 120 wide and 80 high"
                  - heading "one.png" [level=3]
        """
    )
    assert page.get_by_role("navigation").get_by_role("link").get_attribute("href") == "docs"


def test_people_choose_among_several_models(
    page: Page, serve: Callable[..., str], captioner: ScriptedCaptioner, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    other = ScriptedCaptioner()
    with model_server() as server:
        far = Captioner(RemoteRunner(Address.parse(server.openai)), name="far")
        models = {"made/0": captioner, "made/1": other, server.openai: far}

        def load(place: str, /, *, device: str, dtype: str) -> Captioner:
            return models[place]  # type: ignore[return-value]

        named = f"quick=made/0, careful=made/1, far={server.openai}"
        page.goto(serve(None, load, models=named, model_aliases="gpt-4o"))
        choice, status = page.get_by_role("combobox", name="Model"), page.get_by_role("status").first
        expect(status).to_have_text("on cpu")
        assert choice.locator("option").all_inner_texts() == ["quick", "careful", "far"]
        expect(page.locator("footer")).to_contain_text("nowhere else")
        page.get_by_text("Options").click()
        page.get_by_label("Detail").select_option("detailed: a few sentences")
        expect(page.locator(".changed")).to_have_text("detailed: a few sentences")
        card = add(page, photo())
        expect(card.locator(".caption")).to_have_text("a photo 120 wide and 80 high")
        assert [options.detail for options in captioner.streamed] == ["detailed"]

        choice.select_option("careful")
        expect(status).to_have_text("loads with the first photo")
        expect(page.get_by_label("Detail")).to_be_hidden()
        page.get_by_role("button", name="Caption again").click()
        expect(status).to_have_text("on cpu")
        expect(choice).to_have_value("careful")
        assert (len(captioner.streamed), len(other.streamed)) == (1, 1)

        choice.select_option("far")
        place = f"127.0.0.1:{server.port}"
        expect(status).to_have_text(f"on {place}")
        expect(page.locator("footer")).to_contain_text(f"sends them on to {place}")
        expect(page.get_by_label("Beams")).to_be_disabled()
        expect(page.get_by_label("Detail")).to_be_hidden()
        expect(page.locator(".changed")).to_have_text("")
        choice.select_option("quick")
        expect(page.get_by_label("Beams")).to_be_enabled()
        expect(page.locator("footer")).to_contain_text("nowhere else")
        assert server.bodies == []
        page.set_viewport_size(PHONE)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_one_model_is_no_choice(page: Page, serve: Callable[..., str]):
    page.goto(serve(model_aliases="gpt-4o"))
    expect(page.get_by_role("status").first).to_have_text("scripted on cpu")
    expect(page.locator("#choice")).to_be_hidden()
