"""Spellings: the names under which a Sierra Chart bridge, and what was written for one, sends our fields."""

from __future__ import annotations

#: Our field → its spellings, in small letters, without anything but letters and digits; the first that is there counts.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "symbol": ("symbol", "ticker", "instrument"),
    "when": ("timestamp", "datetime", "time", "ts"),
    "price": ("close", "price", "last", "lastprice", "lasttradeprice"),
    "open": ("open", "sessionopen", "openprice", "dailyopen"),
    "high": ("high", "sessionhigh", "highprice", "dailyhigh"),
    "low": ("low", "sessionlow", "lowprice", "dailylow"),
    "bid": ("bid", "bidprice"),
    "ask": ("ask", "askprice"),
    "bid_size": ("bidsize", "bidquantity"),
    "ask_size": ("asksize", "askquantity"),
    "size": ("lastsize", "lasttradesize", "lasttradevolume", "tradesize", "size"),
    "volume": ("volume", "totalvolume", "sessionvolume", "dailyvolume"),
    "vwap": ("vwap",),
    "trades": ("trades", "numtrades", "numberoftrades", "sessionnumtrades"),
    "side": ("side", "aggressor", "atbidorask"),
    "source": ("source",),
}
