"""The HTML of mails in a real browser."""

from __future__ import annotations

from proxyhealth.notifications import forms
from proxyhealth.report import HealthReport
from tests.notifications.made_up import BASE_URL, RUNBOOK_URL, alarm, begin, end, message
from tests.support.browser import assert_accessible, open_page


def test_mail__fits_a_narrow_screen_and_is_accessible(browser, configure):
    configure(BASE_URL=BASE_URL, RUNBOOK_URL=RUNBOOK_URL)
    report = HealthReport(("https://" + "x" * 290,), ("certificate expires in 3 days",))
    changes = [
        begin(1, "m" * 64, report=report),
        end(2, "rome"),
        begin(3, after="unhealthy"),
        begin(4, flaps=6),
    ]
    changes += [begin(i, f"eu-{i}", after="removed") for i in range(5, 10)]
    sent = message(*changes, alarms=(alarm(), alarm(ended=True, number=2)), channel="c" * 64)
    with open_page(browser, viewport={"width": 320, "height": 800}) as page:
        # axe-core takes the ground for white, unless it has a colour.
        page.set_content(forms.html(sent).replace("</head>", "<style>html{background:Canvas}</style></head>"))
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        assert_accessible(page)
